//! Who a process runs as (BEHAVIOUR 20): the request, else the image's USER, by the passwd and group
//! files of its root filesystem.

use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::container::spec::{RunAs, SupplementalGroupsPolicy};
use crate::error::Step;
use crate::{Error, Result};

/// Bytes; the files come from the image.
const MAX_SIZE: u64 = 8 << 20;

/// The greatest uid or gid: Kubernetes' and runc's. Above it, -1 would mean "leave it" to setresuid(2),
/// and a number that wraps would mean root (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

pub struct Wish<'a> {
    pub run_as: &'a RunAs,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: &'a [u32],
    pub policy: SupplementalGroupsPolicy,
    /// The image's User: "", or USER[:GROUP], each a name or a number.
    pub image_user: &'a str,
    /// The root filesystem, mounted or not.
    pub root: BorrowedFd<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    /// The primary gid first, then those of /etc/group by policy, then the request's; each once.
    pub groups: Vec<u32>,
    /// None: the user has no entry in passwd.
    pub home: Option<String>,
    pub username: Option<String>,
}

/// INVALID_ARGUMENT names a user or group that is not there, a number that is too large, and a
/// run_as_group without a user.
pub fn resolve(wish: &Wish<'_>) -> Result<Resolved> {
    let passwd = read(wish.root, "etc/passwd")?;
    let group = read(wish.root, "etc/group")?;
    lookup(wish, &passwd, &group)
}

/// The pure part: the two files are empty where they are missing.
fn lookup(wish: &Wish<'_>, passwd: &[u8], group: &[u8]) -> Result<Resolved> {
    let (user, group_wish) = match wish.run_as {
        RunAs::Uid(uid) => (Id::Number(check(*uid, "run_as_user")?), None),
        RunAs::Username(name) => (Id::parse(name)?, None),
        RunAs::Image if wish.run_as_group.is_some() => {
            return Err(Error::invalid("run_as_group is given without a user"));
        }
        RunAs::Image => image_user(wish.image_user)?,
    };
    let entry = match user {
        Id::Number(uid) => entries(passwd).find(|entry| entry.uid == Some(uid)),
        Id::Name(name) => Some(
            entries(passwd)
                .find(|entry| entry.name == name.as_bytes())
                .ok_or_else(|| Error::invalid(format!("no user {name:?} in the image's /etc/passwd")))?,
        ),
    };
    let uid = match (user, &entry) {
        (Id::Number(uid), _) => uid,
        (Id::Name(name), entry) => entry.as_ref().and_then(|entry| entry.uid).ok_or_else(|| {
            Error::invalid(format!("user {name:?} has no valid uid in the image's /etc/passwd"))
        })?,
    };
    let gid = match (wish.run_as_group, group_wish) {
        (Some(gid), _) => check(gid, "run_as_group")?,
        (None, Some(group_wish)) => group_id(group_wish, group)?,
        // No USER at all is root, whatever passwd says; a number without an entry is in group 0.
        (None, None) if *wish.run_as == RunAs::Image && wish.image_user.is_empty() => 0,
        (None, None) => match &entry {
            None => 0,
            Some(entry) => entry.gid.ok_or_else(|| {
                let name = String::from_utf8_lossy(entry.name);
                Error::invalid(format!("user {name:?} has no valid gid in the image's /etc/passwd"))
            })?,
        },
    };
    let name = entry.as_ref().map(|entry| entry.name);
    let mut groups = vec![gid];
    if let (SupplementalGroupsPolicy::Merge, Some(name)) = (wish.policy, name) {
        groups.extend(memberships(name, group)?);
    }
    for gid in wish.supplemental_groups {
        groups.push(check(*gid, "supplemental_groups")?);
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let home = entry.as_ref().map(|entry| text(entry.home)).filter(|home| !home.is_empty());
    Ok(Resolved { uid, gid, groups, home, username: name.map(text) })
}

/// A user or group as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

impl<'a> Id<'a> {
    /// Digits alone are a number, never a name.
    fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Id::Name(text));
        }
        number(text.as_bytes())
            .map(Id::Number)
            .ok_or_else(|| Error::invalid(format!("user or group {text} is above {MAX_ID}")))
    }
}

/// USER, USER:GROUP, or nothing. An empty part is as if it was not there.
fn image_user(text: &str) -> Result<(Id<'_>, Option<Id<'_>>)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if group.is_some_and(|group| group.contains(':')) {
        return Err(Error::invalid(format!("the image's USER {text:?} is not USER:GROUP")));
    }
    let user = if user.is_empty() { Id::Number(0) } else { Id::parse(user)? };
    Ok((user, group.map(Id::parse).transpose()?))
}

fn check(id: u32, field: &str) -> Result<u32> {
    if id > MAX_ID { Err(Error::invalid(format!("{field}: {id} is above {MAX_ID}"))) } else { Ok(id) }
}

fn group_id(id: Id<'_>, group: &[u8]) -> Result<u32> {
    let name = match id {
        Id::Number(gid) => return Ok(gid),
        Id::Name(name) => name,
    };
    let line = lines(group).find(|fields| fields.first() == Some(&name.as_bytes()));
    let line = line.ok_or_else(|| Error::invalid(format!("no group {name:?} in the image's /etc/group")))?;
    line.get(2)
        .and_then(|gid| number(gid))
        .ok_or_else(|| Error::invalid(format!("group {name:?} has no valid gid in the image's /etc/group")))
}

/// The gids of the groups that list `name`, in the file's order.
fn memberships(name: &[u8], group: &[u8]) -> Result<Vec<u32>> {
    let lists = |fields: &Vec<&[u8]>| {
        fields.get(3).is_some_and(|list| list.split(|byte| *byte == b',').any(|m| m.trim_ascii() == name))
    };
    let gid = |fields: Vec<&[u8]>| {
        number(fields[2]).ok_or_else(|| {
            let group = String::from_utf8_lossy(fields[0]);
            Error::invalid(format!("group {group:?} has no valid gid in the image's /etc/group"))
        })
    };
    lines(group).filter(lists).map(gid).collect()
}

/// An entry of passwd(5). A number that is none, or too large, is None.
struct Entry<'a> {
    name: &'a [u8],
    uid: Option<u32>,
    gid: Option<u32>,
    home: &'a [u8],
}

fn entries(passwd: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    lines(passwd).filter(|fields| fields.len() >= 4).map(|fields| Entry {
        name: fields[0],
        uid: number(fields[2]),
        gid: number(fields[3]),
        home: fields.get(5).copied().unwrap_or_default(),
    })
}

/// The fields of each line that is not a comment.
fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id <= MAX_ID)
}

/// A file below `root`; empty where there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>> {
    let step = || format!("reading the image's /{path}");
    // First as a mere path: to open a device or a FIFO of the image could already do something.
    let Some(found) = open(root, path, OFlags::PATH).step(step)? else { return Ok(Vec::new()) };
    let regular = |fd: &OwnedFd| {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).step(step)?.st_mode);
        if kind == FileType::RegularFile {
            Ok(())
        } else {
            Err(Error::invalid("not a regular file").during(step()))
        }
    };
    regular(&found)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Some(file) = open(root, path, flags).step(step)? else { return Ok(Vec::new()) };
    regular(&file)?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_SIZE + 1).read_to_end(&mut text).step(step)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::invalid(format!("larger than {MAX_SIZE} bytes")).during(step()));
    }
    Ok(text)
}

/// None if there is no such file. No link leads out of `root`.
fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..16 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // Something on the host was renamed while a ".." was resolved (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests;
