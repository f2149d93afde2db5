//! Image volumes: an image's content as a read-only mount.

use tonic::Code;

use podwright::cri::wire as cri;

use crate::harness::{Daemon, pod, script};
use crate::seed;

fn volume(container_path: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        image: Some(cri::ImageSpec { image: seed::image_id().into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        readonly: true,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_whole_or_in_part() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("image-volumes")).await;
    let mut config = script(
        "image-volumes",
        "ls -d /whole/bin/busybox /part/busybox; test -f /one && echo file; touch /whole/x || echo refused; \
         grep -c ' /whole overlay ro,nodev' /proc/self/mounts; mount -o remount,rw /whole || echo stays",
    );
    config.mounts = vec![volume("/whole", ""), volume("/part", "bin"), volume("/one", "bin/busybox")];
    let (status, lines) = daemon.outcome(&pod, config).await;
    let lines: Vec<_> = lines.iter().filter(|(s, _)| s == "stdout").map(|(_, l)| l.as_str()).collect();
    assert_eq!(lines, ["/part/busybox", "/whole/bin/busybox", "file", "refused", "1", "stays"]);
    assert_eq!(status.mounts.len(), 3);
    for mount in &status.mounts {
        let image = mount.image.as_ref().unwrap();
        assert_eq!(image.image, seed::image_id());
        assert_eq!(image.image_ref, status.image_id, "as PullImage returned it");
    }
    assert_eq!(status.mounts[1].image_sub_path, "bin");
    for (mount, code, word) in [
        (cri::Mount { readonly: false, ..volume("/x", "") }, Code::InvalidArgument, "readonly"),
        (volume("/x", "../etc"), Code::InvalidArgument, "image_sub_path"),
        (volume("/x", "not/there"), Code::InvalidArgument, "\"not/there\""),
        (
            cri::Mount {
                image: Some(cri::ImageSpec { image: "a.b/none".into(), ..Default::default() }),
                ..volume("/x", "")
            },
            Code::NotFound,
            "a.b/none",
        ),
    ] {
        let mut config = script("bad", "true");
        config.mounts = vec![mount];
        let error = daemon.create(&pod, config).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(word), "{error}");
    }
    // What held the images has gone with the containers.
    let id = status.id.clone();
    daemon.remove(&id).await.unwrap();
    let holders = std::fs::read_dir(daemon.dir.path().join("root/image/holders")).unwrap().count();
    assert_eq!(holders, 0);
    daemon.finish().await;
}
