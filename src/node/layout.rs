//! Where things are on disk.
//!
//! ```text
//! ROOT (outlives a boot)                    STATE (of this boot)
//! ├─ image/            the image store      ├─ keeper.sock, keeper.lock
//! ├─ network/          addresses, journal   ├─ pods/ID/
//! ├─ pods/ID/pod.json  spec and identity    │  └─ hosts, hostname, resolv.conf
//! ├─ containers/ID/                         └─ containers/ID/
//! │  ├─ container.json spec and identity       ├─ stdout, stderr   FIFOs
//! │  ├─ config.json    the OCI runtime spec    ├─ note             one page, see keeper::note
//! │  ├─ exit.json      how it ended            └─ live.json        pid and start time
//! │  └─ upper/, work/  the writable layer
//! └─ trash/            removed, not yet freed
//! ```

use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    state: PathBuf,
    netns: PathBuf,
}

impl Layout {
    pub fn new(root: &Path, state: &Path, netns: &Path) -> Self {
        Self { root: root.into(), state: state.into(), netns: netns.into() }
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("image")
    }

    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, id: &str) -> PathBuf {
        self.pods().join(id)
    }

    pub fn pod_record(&self, id: &str) -> PathBuf {
        self.pod(id).join("pod.json")
    }

    pub fn pod_state(&self, id: &str) -> PathBuf {
        self.state.join("pods").join(id)
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub fn container_state(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Every directory that must be there before the first pod.
    pub fn directories(&self) -> [PathBuf; 7] {
        [
            self.pods(),
            self.containers(),
            self.trash(),
            self.images(),
            self.network(),
            self.state.join("pods"),
            self.state.join("containers"),
        ]
    }

    /// The pinned network namespace of a pod: a short name, since tools print it.
    pub fn netns(&self, pod_id: &str) -> PathBuf {
        self.netns.join(format!("podwright-{}", &pod_id[..pod_id.len().min(16)]))
    }
}
