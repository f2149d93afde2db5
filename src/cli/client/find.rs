//! Pods and containers by ID, the beginning of an ID, or name.

use crate::cli::client::Client;
use crate::cli::client::table::short;
use crate::cri::wire::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
};
use crate::{Error, Result};

/// What a name can stand for.
pub trait Named {
    const WHAT: &'static str;
    fn id(&self) -> &str;
    fn name(&self) -> &str;
    fn is_alive(&self) -> bool;
}

impl Named for PodSandbox {
    const WHAT: &'static str = "pod";
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        self.metadata.as_ref().map_or("", |m| &m.name)
    }
    fn is_alive(&self) -> bool {
        self.state() == PodSandboxState::SandboxReady
    }
}

impl Named for Container {
    const WHAT: &'static str = "container";
    fn id(&self) -> &str {
        &self.id
    }
    fn name(&self) -> &str {
        self.metadata.as_ref().map_or("", |m| &m.name)
    }
    fn is_alive(&self) -> bool {
        self.state() == ContainerState::ContainerRunning
    }
}

impl Client {
    pub async fn all_pods(&mut self) -> Result<Vec<PodSandbox>> {
        Ok(self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items)
    }

    pub async fn all_containers(&mut self) -> Result<Vec<Container>> {
        Ok(self.runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers)
    }

    /// The one container that `word` stands for.
    pub async fn container(&mut self, word: &str) -> Result<Container> {
        let all = self.all_containers().await?;
        one(&all, word)?.cloned().ok_or_else(|| Error::not_found(format!("no container is called {word}")))
    }
}

/// The whole ID goes before the beginning of one, that before a name, and among several by one
/// name the only living one before the dead.
///
/// # Errors
/// INVALID_ARGUMENT when several are left.
pub fn one<'a, T: Named>(all: &'a [T], word: &str) -> Result<Option<&'a T>> {
    if word.is_empty() {
        return Err(Error::invalid(format!("an empty word names no {}", T::WHAT)));
    }
    let by = |matches: &dyn Fn(&T) -> bool| all.iter().filter(|x| matches(x)).collect::<Vec<_>>();
    let tries = [by(&|x| x.id() == word), by(&|x| x.id().starts_with(word)), by(&|x| x.name() == word)];
    let found = tries.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    let alive: Vec<_> = found.iter().copied().filter(|x| x.is_alive()).collect();
    match (found.as_slice(), alive.as_slice()) {
        ([], _) => Ok(None),
        ([one], _) | (_, [one]) => Ok(Some(one)),
        _ => {
            let ids: Vec<_> = found.iter().map(|x| short(x.id())).collect();
            Err(Error::invalid(format!("{word} is the name of several {}s: {}", T::WHAT, ids.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::wire::ContainerMetadata;

    fn container(id: &str, name: &str, state: ContainerState) -> Container {
        Container {
            id: id.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn ids_go_before_names_and_the_living_before_the_dead() {
        use ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        let all = [
            container("abc1", "web", Exited),
            container("abc2", "web", Running),
            container("def", "job", Exited),
            container("ghi", "job", Exited),
            container("web9", "abc1", Running),
        ];
        let id = |word| one(&all, word).map(|found| found.map(|c| c.id.as_str()));
        assert_eq!(id("abc1"), Ok(Some("abc1")));
        assert_eq!(id("abc"), Ok(Some("abc2")));
        assert_eq!(id("d"), Ok(Some("def")));
        assert_eq!(id("web"), Ok(Some("web9")));
        assert_eq!(id("nothing"), Ok(None));
        assert!(id("job").unwrap_err().message.contains("def, ghi"));
        assert!(id("").is_err());
    }
}
