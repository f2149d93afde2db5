//! The systemd driver: scopes and slices over D-Bus, org.freedesktop.systemd1(5).
//!
//! Properties come from the request's limits alone, never from annotations (CVE-2024-3154). They say
//! what we write into the files as well, because systemd writes them again at every reload.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Mutex;
use zbus::message::{Message, Type};
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant};

use super::path;
use super::weight::weight_of_shares;
use crate::Result;
use crate::container::spec::Resources;
use crate::error::{Error, Kind};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// For a job of systemd; probes in their hundreds can keep it busy for seconds.
const JOB_LIMIT: Duration = Duration::from_secs(30);

/// For systemd to notice that a scope is empty: 5 s.
const RENEWALS: u32 = 20;
const RENEWAL_PAUSE: Duration = Duration::from_millis(250);

/// As systemd has "infinity".
const INFINITY: u64 = u64::MAX;

type Property = (&'static str, Variant<'static>);

/// systemd as this daemon speaks to it. Connects at the first need, and again when the bus went.
#[derive(Debug)]
pub(super) struct Manager {
    connection: Mutex<Option<Connection>>,
}

/// kubelet and cAdvisor know a container's scope as `<prefix>-<id>.scope`.
pub(super) fn scope_name(id: &str) -> String {
    format!("podwright-{id}.scope")
}

/// `/podwright` and `podwright.slice` alike are the slice `/podwright.slice`.
pub(super) fn root_slice(root: &str) -> Result<String> {
    let clean = path::normalise(root)?;
    let base = path::base(&clean);
    if base.ends_with(".slice") {
        return path::expand_slice(base);
    }
    if path::parent(&clean).is_empty() && !base.is_empty() {
        return path::expand_slice(&format!("{base}.slice"));
    }
    Err(Error::invalid(format!("cgroup root {root:?} names no slice, which the systemd driver needs")))
}

/// A slice for one pod below our root's.
pub(super) fn pod_slice_name(root: &str, pod_id: &str) -> String {
    let stem = root.strip_suffix(".slice").unwrap_or(root);
    // A dash would be a level of its own.
    format!("{stem}-pod{}.slice", pod_id.replace('-', "_"))
}

impl Manager {
    pub fn new() -> Result<Self> {
        // The test of sd_booted(3).
        if !std::path::Path::new("/run/systemd/system").is_dir() {
            return Err(Error::precondition(
                "the cgroup driver is systemd, but systemd does not run this host",
            ));
        }
        Ok(Self { connection: Mutex::new(None) })
    }

    /// Makes a scope in `slice` around `pid`, and waits until systemd has it. `devices`: what alone
    /// may be accessed, in the form of DeviceAllow=; None leaves that to us.
    pub async fn start_scope(
        &self,
        scope: &str,
        slice: &str,
        pid: i32,
        resources: &Resources,
        devices: Option<Vec<(String, String)>>,
    ) -> Result<()> {
        let mut properties = scope_properties(scope, slice, pid, resources);
        if let Some(devices) = devices {
            properties.push(("DevicePolicy", "strict".to_owned().into()));
            properties.push(("DeviceAllow", devices.into()));
        }
        Ok(self.start(scope, properties).await?)
    }

    /// A scope around a process that may be in it already, or follow one that has just ended in it.
    pub async fn renew_scope(&self, scope: &str, slice: &str, pid: i32) -> Result<()> {
        for _ in 0..RENEWALS {
            match self.start(scope, scope_properties(scope, slice, pid, &Resources::default())).await {
                Err(Failure { name: Some(name), .. }) if name.ends_with(".UnitExists") => {
                    tokio::time::sleep(RENEWAL_PAUSE).await;
                }
                // It has ended meanwhile too: the one after it asks for itself.
                Err(Failure { name: Some(name), .. }) if name.ends_with(".UnixProcessIdUnknown") => {
                    return Ok(());
                }
                result => return Ok(result?),
            }
        }
        // systemd has seen no end: the one came before the other had gone.
        Ok(())
    }

    /// One that is there already is as good.
    pub async fn start_slice(&self, slice: &str) -> Result<()> {
        let properties = vec![
            ("Description", Variant::from(format!("podwright {slice}"))),
            ("CPUAccounting", true.into()),
            ("MemoryAccounting", true.into()),
            ("TasksAccounting", true.into()),
            ("DefaultDependencies", false.into()),
        ];
        match self.start(slice, properties).await {
            Err(Failure { name: Some(name), .. }) if name.ends_with(".UnitExists") => Ok(()),
            result => Ok(result?),
        }
    }

    pub async fn stop_slice(&self, slice: &str) -> Result<()> {
        match self.job(slice, "StopUnit", &(slice, "replace")).await {
            Err(Failure { name: Some(name), .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
            result => Ok(result?),
        }
    }

    /// Changes the properties that `resources` gives, for this boot.
    pub async fn set_limits(&self, unit: &str, resources: &Resources) -> Result<()> {
        let properties = limit_properties(resources);
        if properties.is_empty() {
            return Ok(());
        }
        Ok(self.call("SetUnitProperties", &(unit, true, properties)).await.map(drop)?)
    }

    async fn start(&self, unit: &str, properties: Vec<Property>) -> Result<(), Failure> {
        let auxiliary: Vec<(&str, Vec<Property>)> = Vec::new();
        self.job(unit, "StartTransientUnit", &(unit, "replace", properties, auxiliary)).await
    }

    /// Calls a method that answers with a job, and waits for the job's end.
    async fn job<B>(&self, unit: &str, method: &'static str, body: &B) -> Result<(), Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let connection = self.connection().await?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .interface(INTERFACE)
            .member("JobRemoved")
            .arg(2, unit.to_owned())
            .build()
            .map_err(|e| Failure::of(method, e))?;
        // Before the call, so that the signal cannot be missed.
        let mut signals = MessageStream::for_match_rule(rule, &connection, None)
            .await
            .map_err(|e| Failure::of(method, e))?;
        let reply = self.call(method, body).await?;
        let job: OwnedObjectPath = reply.body().deserialize().map_err(|e| Failure::of(method, e))?;
        let ended = async {
            while let Some(signal) = signals.next().await {
                let signal = signal.map_err(|e| Failure::of(method, e))?;
                let body = signal.body();
                let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                    body.deserialize().map_err(|e| Failure::of(method, e))?;
                if path == job {
                    return Ok(result);
                }
            }
            Err(Failure::text(Kind::Unavailable, "systemd went away during the job"))
        };
        match tokio::time::timeout(JOB_LIMIT, ended).await {
            Ok(Ok(result)) if result == "done" => Ok(()),
            Ok(Ok(result)) => Err(Failure::text(
                Kind::Internal,
                format!("systemd's job {method} for {unit} ended as {result:?}"),
            )),
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                let text =
                    format!("systemd did not finish {method} for {unit} within {} s", JOB_LIMIT.as_secs());
                Err(Failure::text(Kind::Unavailable, text))
            }
        }
    }

    async fn call<B>(&self, method: &'static str, body: &B) -> Result<Message, Failure>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let connection = self.connection().await?;
        let reply = connection.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body).await;
        reply.map_err(|e| Failure::of(method, e))
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = zbus::connection::Builder::system()
            .method_timeout(JOB_LIMIT)
            .build()
            .await
            .map_err(|e| Failure::of("connecting to the system bus", e))?;
        // Without a subscriber systemd tells of no jobs but to some callers.
        connection
            .call_method(Some(SERVICE), PATH, Some(INTERFACE), "Subscribe", &())
            .await
            .map_err(|e| Failure::of("Subscribe", e))?;
        *slot = Some(connection.clone());
        Ok(connection)
    }
}

/// An error with the D-Bus name that callers here branch on.
struct Failure {
    name: Option<String>,
    error: Error,
}

impl Failure {
    fn text(kind: Kind, message: impl Into<String>) -> Self {
        Self { name: None, error: Error::new(kind, message) }
    }

    fn of(step: &str, error: zbus::Error) -> Self {
        let (name, kind) = match &error {
            zbus::Error::MethodError(name, ..) => (Some(name.to_string()), Kind::Internal),
            zbus::Error::InputOutput(_) | zbus::Error::Connection(..) => (None, Kind::Unavailable),
            _ => (None, Kind::Internal),
        };
        Self { name, error: Error::new(kind, format!("systemd, {step}: {error}")) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

fn scope_properties(scope: &str, slice: &str, pid: i32, resources: &Resources) -> Vec<Property> {
    let mut properties: Vec<Property> = vec![
        ("Description", format!("podwright {scope}").into()),
        ("Slice", slice.to_owned().into()),
        // What is below belongs to the container.
        ("Delegate", true.into()),
        ("PIDs", vec![pid.cast_unsigned()].into()),
        ("DefaultDependencies", false.into()),
        // Else a scope whose last process was OOM-killed stays as failed.
        ("CollectMode", "inactive-or-failed".to_owned().into()),
        ("CPUAccounting", true.into()),
        ("MemoryAccounting", true.into()),
        ("TasksAccounting", true.into()),
        ("IOAccounting", true.into()),
    ];
    let limits = limit_properties(resources);
    if limits.iter().all(|(name, _)| *name != "TasksMax") {
        // systemd's default would apply: 15 % of the host's. The pod's slice has kubelet's.
        properties.push(("TasksMax", INFINITY.into()));
    }
    properties.extend(limits);
    properties
}

/// The given limits, as far as systemd has properties for them.
fn limit_properties(r: &Resources) -> Vec<Property> {
    let or_infinity = |value: i64| u64::try_from(value).unwrap_or(INFINITY);
    let mut properties: Vec<Property> = Vec::new();
    if r.cpu_shares > 0 {
        properties.push(("CPUWeight", weight_of_shares(r.cpu_shares.unsigned_abs()).into()));
    }
    if r.cpu_quota != 0 {
        properties.push(("CPUQuotaPerSecUSec", quota_per_second(r.cpu_quota, r.cpu_period).into()));
        if r.cpu_period > 0 {
            properties.push(("CPUQuotaPeriodUSec", r.cpu_period.unsigned_abs().into()));
        }
    }
    if r.memory_limit != 0 {
        properties.push(("MemoryMax", or_infinity(r.memory_limit).into()));
        let swap = match r.memory_swap_limit {
            0 if r.memory_limit > 0 => 0,
            ..=0 => INFINITY,
            both => both.saturating_sub(r.memory_limit.max(0)).max(0).unsigned_abs(),
        };
        properties.push(("MemorySwapMax", swap.into()));
    }
    for (name, list) in [("AllowedCPUs", &r.cpuset_cpus), ("AllowedMemoryNodes", &r.cpuset_mems)] {
        if let Some(mask) = bit_mask(list) {
            properties.push((name, mask.into()));
        }
    }
    // Files of `unified` that have a property of their own, in the form that systemd wants.
    for (file, value) in &r.unified {
        let number = if value.trim() == "max" { Some(INFINITY) } else { value.trim().parse().ok() };
        let name = match file.as_str() {
            "pids.max" => "TasksMax",
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "cpu.weight" => "CPUWeight",
            _ => continue,
        };
        if let Some(number) = number {
            properties.retain(|(other, _)| *other != name);
            properties.push((name, number.into()));
        }
    }
    properties
}

/// Microseconds of CPU per second of time. systemd keeps whole per cents, so round up, lest its
/// limit be tighter than the one asked for.
fn quota_per_second(quota: i64, period: i64) -> u64 {
    const PER_CENT: u64 = 10_000;
    let Ok(quota) = u64::try_from(quota) else { return INFINITY };
    let period = u64::try_from(period).ok().filter(|p| *p > 0).unwrap_or(100_000);
    let per_second = u128::from(quota) * 1_000_000 / u128::from(period);
    u64::try_from(per_second).map_or(INFINITY, |n| n.div_ceil(PER_CENT).saturating_mul(PER_CENT))
}

/// `0-2,9` as bytes, the least CPU in the least bit of the first. None: empty or no list.
fn bit_mask(list: &str) -> Option<Vec<u8>> {
    // Beyond any machine that Linux runs on, and small enough to be harmless.
    const MOST: usize = 1 << 14;
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST || first > last {
            return None;
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|bit| mask[bit / 8] |= 1 << (bit % 8));
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(properties: &[Property]) -> Vec<&str> {
        properties.iter().map(|(name, _)| *name).collect()
    }

    fn find(properties: &[Property], name: &str) -> Variant<'static> {
        properties.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name}")).1.clone()
    }

    #[test]
    fn b28_names_are_those_that_kubelet_expects() {
        assert_eq!(scope_name("abc"), "podwright-abc.scope");
        assert_eq!(root_slice("/podwright").unwrap(), "/podwright.slice");
        assert_eq!(root_slice("podwright.slice").unwrap(), "/podwright.slice");
        assert_eq!(root_slice("/a-b.slice").unwrap(), "/a.slice/a-b.slice");
        assert!(root_slice("/a/b").is_err());
        assert!(root_slice("").is_err());
        assert_eq!(pod_slice_name("podwright.slice", "a-b"), "podwright-poda_b.slice");
    }

    #[test]
    fn a_scope_is_delegated_and_takes_no_default_limit_of_tasks() {
        let properties = scope_properties("podwright-x.scope", "kubepods.slice", 42, &Resources::default());
        assert_eq!(find(&properties, "Slice"), Variant::from("kubepods.slice"));
        assert_eq!(find(&properties, "Delegate"), Variant::from(true));
        assert_eq!(find(&properties, "PIDs"), Variant::from(vec![42u32]));
        assert_eq!(find(&properties, "TasksMax"), Variant::from(u64::MAX));
    }

    #[test]
    fn limits_agree_with_the_files() {
        let resources = Resources {
            cpu_shares: 1024,
            cpu_quota: 25_001,
            cpu_period: 50_000,
            memory_limit: 1000,
            memory_swap_limit: 1500,
            cpuset_cpus: "0,9-10".into(),
            unified: [("pids.max", "7"), ("memory.oom.group", "1"), ("memory.high", "max")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            ..Default::default()
        };
        let properties = scope_properties("s", "t", 1, &resources);
        assert_eq!(find(&properties, "CPUWeight"), Variant::from(100u64));
        assert_eq!(find(&properties, "CPUQuotaPerSecUSec"), Variant::from(510_000u64));
        assert_eq!(find(&properties, "CPUQuotaPeriodUSec"), Variant::from(50_000u64));
        assert_eq!(find(&properties, "MemoryMax"), Variant::from(1000u64));
        assert_eq!(find(&properties, "MemorySwapMax"), Variant::from(500u64));
        assert_eq!(find(&properties, "MemoryHigh"), Variant::from(u64::MAX));
        assert_eq!(find(&properties, "TasksMax"), Variant::from(7u64));
        assert_eq!(find(&properties, "AllowedCPUs"), Variant::from(vec![1u8, 6]));
        assert_eq!(names(&properties).iter().filter(|n| **n == "TasksMax").count(), 1);
    }

    #[test]
    fn b29_zero_is_not_given_and_negative_is_infinite() {
        assert!(limit_properties(&Resources::default()).is_empty());
        let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Default::default() };
        let properties = limit_properties(&lifted);
        for name in ["CPUQuotaPerSecUSec", "MemoryMax", "MemorySwapMax"] {
            assert_eq!(find(&properties, name), Variant::from(u64::MAX), "{name}");
        }
    }

    #[test]
    fn masks_of_odd_lists() {
        assert_eq!(bit_mask("0-15"), Some(vec![255, 255]));
        for bad in ["", "a", "3-1", "0-99999999999", "1,,2"] {
            assert_eq!(bit_mask(bad), None, "{bad:?}");
        }
    }
}
