//! Who has which address, kept on disk:
//!
//! ```text
//! ROOT/network/builtin/
//!     addresses/10.88.0.2   the pod's ID, a newline, its namespace's pin
//!     addresses/10.88.0.3
//!     leaving/10.88.0.4     the same, of a pod that gave its address back
//! ```
//!
//! A file in `addresses/` is made (O_EXCL) before anything in the kernel is, so it is the journal
//! as well: whatever of a pod may exist has its file here. A pod that is taken down drops its
//! namespace and does not wait for the kernel to take down the link in it, which takes 30 ms;
//! until that link is gone its address could still answer, so the file is moved to `leaving/` and
//! the address is free only once no link of the pod's name is there. Addresses are given out in
//! turn, so that the ones just freed are the last to be used again.
//!
//! Nothing is synced to disk: after a power cut no link is left, and so no address in use either;
//! a file that lost its content belongs to nobody.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::subnet::Subnet;
use crate::Error;
use crate::error::{Kind, Result, Step};

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub pod_id: String,
    /// Where the pod's network namespace is, or was, pinned.
    pub netns: PathBuf,
}

#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    taken: HashMap<Ipv4Addr, Owner>,
    by_pod: HashMap<String, Ipv4Addr>,
    leaving: BTreeMap<Ipv4Addr, Owner>,
    last: Ipv4Addr,
}

impl Pool {
    /// Reads what is on disk; torn files are removed.
    pub fn open(dir: PathBuf) -> Result<Self> {
        for sub in ["addresses", "leaving"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).step(|| format!("making {}", path.display()))?;
        }
        let taken: HashMap<_, _> = read(&dir.join("addresses"))?.into_iter().collect();
        let leaving: BTreeMap<_, _> = read(&dir.join("leaving"))?.into_iter().collect();
        let by_pod = taken.iter().map(|(address, owner)| (owner.pod_id.clone(), *address)).collect();
        let last = taken.keys().chain(leaving.keys()).max().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        Ok(Self { dir, taken, by_pod, leaving, last })
    }

    /// The pod's address: the one it has, or the next that is free.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when every address of the subnet is taken or about to be left.
    pub fn allocate(&mut self, subnet: &Subnet, owner: &Owner) -> Result<Ipv4Addr> {
        if let Some(address) = self.by_pod.get(&owner.pod_id) {
            return Ok(*address);
        }
        for address in subnet.after(self.last) {
            if self.taken.contains_key(&address) || self.leaving.contains_key(&address) {
                continue;
            }
            let path = self.taken_path(address);
            let file = OpenOptions::new().write(true).create_new(true).open(&path);
            let written = match file {
                Ok(mut file) => file.write_all(encode(owner).as_bytes()),
                // Somebody else's: the same root used twice.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(format!("reserving {}", path.display()), e)),
            };
            if let Err(e) = written {
                let _ = fs::remove_file(&path);
                return Err(Error::io(format!("writing {}", path.display()), e));
            }
            self.last = address;
            self.taken.insert(address, owner.clone());
            self.by_pod.insert(owner.pod_id.clone(), address);
            return Ok(address);
        }
        Err(Error::new(
            Kind::ResourceExhausted,
            format!(
                "no address of {subnet} is free: {} are taken, {} wait for their link to go",
                self.taken.len(),
                self.leaving.len()
            ),
        ))
    }

    /// Gives the pod's address back, to be used again once its link is gone. None: it had none.
    pub fn leave(&mut self, pod_id: &str) -> Result<Option<Owner>> {
        let Some(&address) = self.by_pod.get(pod_id) else { return Ok(None) };
        let (from, to) = (self.taken_path(address), self.leaving_path(address));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("releasing {}", from.display()), e));
            }
            _ => {}
        }
        self.by_pod.remove(pod_id);
        let owner = self.taken.remove(&address);
        if let Some(owner) = &owner {
            self.leaving.insert(address, owner.clone());
        }
        Ok(owner)
    }

    /// Frees the addresses whose pods' links are gone; returns how many are still to go.
    pub fn sweep(&mut self, gone: impl Fn(&str) -> bool) -> Result<usize> {
        let free: Vec<_> = self.leaving.iter().filter(|(_, o)| gone(&o.pod_id)).map(|(a, _)| *a).collect();
        for address in free {
            let path = self.leaving_path(address);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(format!("removing {}", path.display()), e));
                }
                _ => self.leaving.remove(&address),
            };
        }
        Ok(self.leaving.len())
    }

    /// The pods that have an address.
    pub fn pods(&self) -> Vec<String> {
        self.by_pod.keys().cloned().collect()
    }

    fn taken_path(&self, address: Ipv4Addr) -> PathBuf {
        self.dir.join("addresses").join(address.to_string())
    }

    fn leaving_path(&self, address: Ipv4Addr) -> PathBuf {
        self.dir.join("leaving").join(address.to_string())
    }
}

fn encode(owner: &Owner) -> String {
    format!("{}\n{}\n", owner.pod_id, owner.netns.display())
}

/// None: torn.
fn decode(text: &str) -> Option<Owner> {
    let mut lines = text.split('\n');
    let (pod_id, netns) = (lines.next()?, lines.next()?);
    // The newline that ends the second line is the last byte written.
    (!pod_id.is_empty() && lines.next() == Some(""))
        .then(|| Owner { pod_id: pod_id.to_owned(), netns: netns.into() })
}

fn read(dir: &Path) -> Result<Vec<(Ipv4Addr, Owner)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).step(|| format!("reading {}", dir.display()))? {
        let path = entry.step(|| format!("reading {}", dir.display()))?.path();
        let address = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let Some(address) = address else { continue };
        let owner = fs::read_to_string(&path).ok().and_then(|text| decode(&text));
        match owner {
            Some(owner) => found.push((address, owner)),
            None => fs::remove_file(&path).step(|| format!("removing torn {}", path.display()))?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str) -> Owner {
        Owner { pod_id: id.into(), netns: "/run/netns/x".into() }
    }

    fn pool(dir: &tempfile::TempDir) -> Pool {
        Pool::open(dir.path().join("builtin")).unwrap()
    }

    #[test]
    fn an_address_is_taken_left_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.1.2.0/29".parse().unwrap();
        let mut p = pool(&dir);
        let a = p.allocate(&subnet, &owner("a")).unwrap();
        assert_eq!(a, Ipv4Addr::new(10, 1, 2, 2));
        assert_eq!(p.allocate(&subnet, &owner("a")).unwrap(), a, "a retry gets the same one");
        assert_eq!(p.leave("a").unwrap(), Some(owner("a")));
        assert_eq!(p.leave("a").unwrap(), None);
        for id in ["b", "c", "d", "e"] {
            assert_ne!(p.allocate(&subnet, &owner(id)).unwrap(), a, "its link may still be there");
        }
        let error = p.allocate(&subnet, &owner("f")).unwrap_err();
        assert_eq!(error.kind, Kind::ResourceExhausted);
        assert!(error.message.contains("4 are taken, 1 wait"), "{error}");
        assert_eq!(p.sweep(|_| false).unwrap(), 1);
        assert_eq!(p.sweep(|id| id == "a").unwrap(), 0);
        assert_eq!(p.allocate(&subnet, &owner("f")).unwrap(), a);
    }

    #[test]
    fn what_is_on_disk_is_known_again_and_torn_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        let mut p = pool(&dir);
        let a = p.allocate(&subnet, &owner("a")).unwrap();
        let b = p.allocate(&subnet, &owner("b")).unwrap();
        p.leave("b").unwrap();
        let torn = dir.path().join("builtin/addresses/10.1.2.9");
        fs::write(&torn, "c").unwrap();
        let mut p = pool(&dir);
        assert!(!torn.exists());
        assert_eq!(p.pods(), ["a"]);
        assert_eq!(p.allocate(&subnet, &owner("a")).unwrap(), a);
        assert!(p.allocate(&subnet, &owner("d")).unwrap() > b, "the next in turn, not the one just left");
        assert_eq!(p.sweep(|id| id == "b").unwrap(), 0);
    }
}
