//! Who has which address, kept in `ROOT/network/builtin/addresses`, a text file that is only
//! appended to:
//!
//! ```text
//! + 10.88.0.2 4f0c… /run/netns/4f0c…   taken: the pod's ID, where its namespace is pinned
//! + 10.88.0.3 91ab… /run/netns/91ab…
//! - 10.88.0.2                          given back; its link may still be there
//! . 10.88.0.2                          free
//! ```
//!
//! A line is written, by one write, before anything in the kernel is made, so the file is the
//! journal as well: whatever of a pod may exist stands here. It is written anew, and put in place
//! whole, when the daemon starts and whenever most of it is history. (A file for each address costs
//! fifty times as much on ext4, which looks for an inode that was not freed in the last seconds.)
//!
//! A pod that is taken down drops its namespace and does not wait for the kernel to take down the
//! link in it, which takes 30 ms; until that link is gone its address could still answer, so the
//! address is free only once no link of the pod's name is there. Addresses are given out in turn,
//! so that the ones just freed are the last to be used again.
//!
//! Nothing is synced to disk: after a power cut no link is left, and so no address in use either;
//! a line that is torn belongs to nobody.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
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
    path: PathBuf,
    file: File,
    /// Lines in the file.
    lines: usize,
    held: Held,
    last: Ipv4Addr,
}

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    taken: BTreeMap<Ipv4Addr, Owner>,
    by_pod: HashMap<String, Ipv4Addr>,
    leaving: BTreeMap<Ipv4Addr, Owner>,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Take(Ipv4Addr, Owner),
    Leave(Ipv4Addr),
    Free(Ipv4Addr),
}

/// History that is kept before the file is written anew, in lines.
const HISTORY: usize = 4096;

impl Pool {
    /// Reads the file at `path`, if there is one, and writes it anew.
    pub fn open(path: PathBuf) -> Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        let mut held = Held::default();
        let mut last = Ipv4Addr::UNSPECIFIED;
        for change in String::from_utf8_lossy(&text).split_inclusive('\n').filter_map(Change::parse) {
            if let Change::Take(address, _) = &change {
                last = *address;
            }
            held.apply(change);
        }
        let (file, lines) = rewrite(&path, &held)?;
        Ok(Self { path, file, lines, held, last })
    }

    /// The pod's address: the one it has, or the next that is free.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when every address of the subnet is taken or about to be left.
    pub fn allocate(&mut self, subnet: &Subnet, owner: &Owner) -> Result<Ipv4Addr> {
        if let Some(address) = self.held.by_pod.get(&owner.pod_id) {
            return Ok(*address);
        }
        let held = &self.held;
        let is_free = |a: &Ipv4Addr| !held.taken.contains_key(a) && !held.leaving.contains_key(a);
        let Some(address) = subnet.after(self.last).find(is_free) else {
            let (taken, leaving) = (held.taken.len(), held.leaving.len());
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!(
                    "no address of {subnet} is free: {taken} are taken, {leaving} wait for their link to go"
                ),
            ));
        };
        self.write(Change::Take(address, owner.clone()))?;
        self.last = address;
        Ok(address)
    }

    /// Gives the pod's address back, to be used again once its link is gone. None: it had none.
    pub fn leave(&mut self, pod_id: &str) -> Result<Option<Owner>> {
        let Some(&address) = self.held.by_pod.get(pod_id) else { return Ok(None) };
        self.write(Change::Leave(address))?;
        Ok(self.held.leaving.get(&address).cloned())
    }

    /// Frees the addresses whose pods' links are gone; returns how many are still to go.
    pub fn sweep(&mut self, gone: impl Fn(&str) -> bool) -> Result<usize> {
        let free: Vec<_> =
            self.held.leaving.iter().filter(|(_, o)| gone(&o.pod_id)).map(|(a, _)| *a).collect();
        for address in free {
            self.write(Change::Free(address))?;
        }
        Ok(self.held.leaving.len())
    }

    /// The pods that have an address.
    pub fn pods(&self) -> Vec<String> {
        self.held.by_pod.keys().cloned().collect()
    }

    fn write(&mut self, change: Change) -> Result<()> {
        if self.lines > HISTORY + 2 * (self.held.taken.len() + self.held.leaving.len()) {
            (self.file, self.lines) = rewrite(&self.path, &self.held)?;
        }
        let line = change.line()?;
        self.file.write_all(line.as_bytes()).step(|| format!("writing {}", self.path.display()))?;
        self.lines += 1;
        self.held.apply(change);
        Ok(())
    }
}

impl Held {
    fn apply(&mut self, change: Change) {
        match change {
            // A file that was tampered with may take an address twice: the later one has it.
            Change::Take(address, owner) => {
                self.leaving.remove(&address);
                if let Some(earlier) = self.taken.remove(&address) {
                    self.by_pod.remove(&earlier.pod_id);
                }
                if let Some(earlier) = self.by_pod.remove(&owner.pod_id) {
                    self.taken.remove(&earlier);
                }
                self.by_pod.insert(owner.pod_id.clone(), address);
                self.taken.insert(address, owner);
            }
            Change::Leave(address) => {
                if let Some(owner) = self.taken.remove(&address) {
                    self.by_pod.remove(&owner.pod_id);
                    self.leaving.insert(address, owner);
                }
            }
            Change::Free(address) => {
                self.leaving.remove(&address);
            }
        }
    }
}

impl Change {
    /// # Errors
    /// INVALID_ARGUMENT where an ID or a path could not be told from the rest of the line.
    fn line(&self) -> Result<String> {
        match self {
            Self::Take(address, Owner { pod_id, netns }) => {
                let netns = netns.to_str().filter(|n| !n.contains('\n'));
                let pod_id = Some(pod_id).filter(|id| !id.is_empty() && !id.contains([' ', '\n']));
                let (Some(netns), Some(pod_id)) = (netns, pod_id) else {
                    return Err(Error::invalid(format!("{self:?} cannot be written as a line")));
                };
                Ok(format!("+ {address} {pod_id} {netns}\n"))
            }
            Self::Leave(address) => Ok(format!("- {address}\n")),
            Self::Free(address) => Ok(format!(". {address}\n")),
        }
    }

    /// None: a line that is torn or not ours.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(4, ' ');
        let (verb, address) = (words.next()?, words.next()?.parse().ok()?);
        match verb {
            "+" => {
                let pod_id = words.next().filter(|id| !id.is_empty())?.to_owned();
                Some(Self::Take(address, Owner { pod_id, netns: words.next()?.into() }))
            }
            "-" => Some(Self::Leave(address)),
            "." => Some(Self::Free(address)),
            _ => None,
        }
    }
}

/// Puts a file with what is held, and nothing else, in place of the one at `path`.
fn rewrite(path: &Path, held: &Held) -> Result<(File, usize)> {
    let step = || format!("writing {}", path.display());
    let new = path.with_extension("new");
    let mut text = String::new();
    for (address, owner) in held.taken.iter().chain(&held.leaving) {
        text += &Change::Take(*address, owner.clone()).line()?;
    }
    for address in held.leaving.keys() {
        text += &Change::Leave(*address).line()?;
    }
    fs::write(&new, &text).step(step)?;
    let file = OpenOptions::new().append(true).open(&new).step(step)?;
    fs::rename(&new, path).step(step)?;
    Ok((file, held.taken.len() + 2 * held.leaving.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(id: &str) -> Owner {
        Owner { pod_id: id.into(), netns: "/run/netns/a pod".into() }
    }

    fn pool(dir: &tempfile::TempDir) -> Pool {
        Pool::open(dir.path().join("addresses")).unwrap()
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
    fn what_is_on_disk_is_known_again_and_a_torn_line_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        let mut p = pool(&dir);
        let a = p.allocate(&subnet, &owner("a")).unwrap();
        let b = p.allocate(&subnet, &owner("b")).unwrap();
        p.leave("b").unwrap();
        p.file.write_all(b"+ 10.1.2.9 c /run/ne").unwrap();
        let mut p = pool(&dir);
        assert_eq!(p.pods(), ["a"]);
        assert_eq!(p.allocate(&subnet, &owner("a")).unwrap(), a);
        assert!(p.allocate(&subnet, &owner("d")).unwrap() > b, "the next in turn, not the one just left");
        assert_eq!(p.sweep(|id| id == "b").unwrap(), 0);
        let held = pool(&dir).held;
        assert_eq!((held.taken.len(), held.leaving.len()), (2, 0));
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        let mut p = pool(&dir);
        p.allocate(&subnet, &owner("stays")).unwrap();
        for i in 0..HISTORY {
            let id = format!("p{i}");
            p.allocate(&subnet, &owner(&id)).unwrap();
            p.leave(&id).unwrap();
            p.sweep(|_| true).unwrap();
        }
        let lines = fs::read_to_string(&p.path).unwrap().lines().count();
        assert!(lines <= HISTORY + 16 && lines == p.lines, "{lines}");
        assert_eq!(pool(&dir).held, p.held);
        assert_eq!(p.pods(), ["stays"]);
    }

    proptest! {
        #[test]
        fn any_file_is_read(text in "([+.-] (10\\.0\\.0\\.[0-9]|x)? ?[a-z]? ?[/a-z ]{0,4}\n?){0,8}") {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("addresses"), text).unwrap();
            let p = pool(&dir);
            prop_assert_eq!(&pool(&dir).held, &p.held);
            prop_assert!(p.held.taken.keys().all(|a| !p.held.leaving.contains_key(a)));
        }
    }
}
