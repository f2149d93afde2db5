//! Access to device nodes, by v1 and by eBPF.

use super::*;

#[tokio::test]
async fn devices_are_the_default_set_and_those_listed() {
    let Some(scratch) = Scratch::new() else { return };
    devices_case(scratch).await;
    // The v2 way, which a hybrid host has as well.
    let Some(scratch) = Scratch::with(|layout| layout.v1.retain(|h| h.controllers != ["devices"])) else {
        return;
    };
    if scratch.layout().unified.is_some() {
        devices_case(scratch).await;
    }
}

async fn devices_case(scratch: Scratch) {
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let script = "for d in null zero urandom; do head -c 0 /dev/$d && echo $d; done;
                  head -c 0 /dev/kmsg 2>&1 && echo kmsg; : > /dev/kmsg && echo kmsg-written";
    let listed = |access: &str| {
        DeviceRules::Listed(vec![DeviceRule { block: false, major: 1, minor: 11, access: access.into() }])
    };
    for (id, rules, reads, writes) in [
        ("none", DeviceRules::Listed(vec![]), false, false),
        ("read", listed("r"), true, false),
        ("both", listed("rw"), true, true),
        ("all", DeviceRules::All, true, true),
    ] {
        let container = scratch.container(&pod, id, &Resources::default());
        c.allow_devices(&container, &rules).unwrap();
        let said = scratch.run(&container, script).output();
        assert!(said.starts_with("null\nzero\nurandom\n"), "{id}: {said}");
        assert_eq!(said.contains("\nkmsg\n"), reads, "{id}: {said}");
        assert_eq!(said.contains("\nkmsg-written\n"), writes, "{id}: {said}");
        c.remove(&container).await.unwrap();
    }
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}
