//! Filters of lists. An unset filter, or an unset field of one, lets everything pass.

use crate::container::status::State;
use crate::cri::decode::known;
use crate::cri::wire;
use crate::error::Result;
use crate::{container, pod};

pub(in crate::cri) fn pods(filter: Option<wire::PodSandboxFilter>) -> Result<pod::list::Filter> {
    let filter = filter.unwrap_or_default();
    let ready = filter
        .state
        .map(|value| known("filter.state", value.state))
        .transpose()?
        .map(|state: wire::PodSandboxState| state == wire::PodSandboxState::SandboxReady);
    Ok(pod::list::Filter { id: filter.id, ready, labels: filter.label_selector })
}

pub(in crate::cri) fn containers(filter: Option<wire::ContainerFilter>) -> Result<container::list::Filter> {
    let filter = filter.unwrap_or_default();
    let state = filter.state.map(|value| known("filter.state", value.state)).transpose()?.map(state);
    Ok(container::list::Filter {
        id: filter.id,
        pod_id: filter.pod_sandbox_id,
        state,
        labels: filter.label_selector,
    })
}

fn state(state: wire::ContainerState) -> State {
    match state {
        wire::ContainerState::ContainerCreated => State::Created,
        wire::ContainerState::ContainerRunning => State::Running,
        wire::ContainerState::ContainerExited => State::Exited,
        wire::ContainerState::ContainerUnknown => State::Unknown,
    }
}

pub(in crate::cri) fn container_stats(
    filter: Option<wire::ContainerStatsFilter>,
) -> container::stats::Filter {
    let filter = filter.unwrap_or_default();
    container::stats::Filter { id: filter.id, pod_id: filter.pod_sandbox_id, labels: filter.label_selector }
}

pub(in crate::cri) fn pod_stats(filter: Option<wire::PodSandboxStatsFilter>) -> pod::stats::Filter {
    let filter = filter.unwrap_or_default();
    pod::stats::Filter { id: filter.id, labels: filter.label_selector }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::encode;

    #[test]
    fn behaviour_8_a_state_that_is_zero_on_the_wire_is_still_a_filter() {
        let filter = |state| {
            let state = Some(wire::PodSandboxStateValue { state });
            pods(Some(wire::PodSandboxFilter { state, ..Default::default() }))
        };
        assert_eq!(filter(0).unwrap().ready, Some(true));
        assert_eq!(filter(1).unwrap().ready, Some(false));
        assert!(filter(2).is_err());
        assert_eq!(pods(Some(Default::default())).unwrap().ready, None);
        assert_eq!(pods(None).unwrap(), pod::list::Filter::default());
    }

    #[test]
    fn container_states_go_both_ways() {
        for value in 0..4 {
            let filter = wire::ContainerFilter {
                state: Some(wire::ContainerStateValue { state: value }),
                ..Default::default()
            };
            let state = containers(Some(filter)).unwrap().state.unwrap();
            assert_eq!(i32::from(encode::container::state(state)), value);
        }
    }
}
