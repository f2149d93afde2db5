//! What may happen to a container in which phase: a table that start, stop, kill, removal and the end
//! of a process ask, each while it holds the container's gate. Nothing here does anything.
//!
//! ```text
//!             start          stop             kill             its process ends   remove
//!  Created    release it     nothing to stop  end the parked   it ends            not yet
//!  Running    refused        signal it        kill them all    it ends            not yet
//!  Exited     refused        nothing          nothing          nothing            now
//!  Unknown    refused        nothing          nothing          nothing            now
//! ```

use crate::container::Ending;
use crate::keeper::client::Process;

/// How far a container is, and what exists then.
#[derive(Debug, Clone)]
pub enum Phase {
    Created(Process),
    Running {
        process: Process,
        started_at: i64,
    },
    Exited(Ending),
    /// What is wrong with it.
    Unknown(String),
}

impl Phase {
    pub fn stage(&self) -> Stage {
        match self {
            Phase::Created(_) => Stage::Created,
            Phase::Running { .. } => Stage::Running,
            Phase::Exited(_) => Stage::Exited,
            Phase::Unknown(_) => Stage::Unknown,
        }
    }
}

/// A phase without what exists in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Created,
    Running,
    Exited,
    Unknown,
}

/// What is to be done to be rid of a container's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// Whoever waits in it has run nothing.
    EndParked,
    /// Everything in its cgroup.
    All,
    Nothing,
}

impl Stage {
    /// Err: what it is instead of ready for a start. A container starts once.
    pub fn start(self) -> Result<(), &'static str> {
        match self {
            Stage::Created => Ok(()),
            Stage::Running => Err("running already"),
            Stage::Exited => Err("at its end; a container starts once"),
            Stage::Unknown => Err("in an unknown state"),
        }
    }

    /// Whether there is something that the stop signal is for. One that was never started has nobody
    /// who would hear it; its pod's stop or its removal end it.
    pub fn stops(self) -> bool {
        self == Stage::Running
    }

    pub fn kill(self) -> Kill {
        match self {
            Stage::Created => Kill::EndParked,
            Stage::Running => Kill::All,
            Stage::Exited | Stage::Unknown => Kill::Nothing,
        }
    }

    /// Whether no process of it is left.
    pub fn is_over(self) -> bool {
        matches!(self, Stage::Exited | Stage::Unknown)
    }

    /// Whether a container may go on to that phase. Never back, and never from one end to another: the
    /// exit code that was told first stays. Of one that could not be judged its end may show.
    pub fn leads_to(self, next: Stage) -> bool {
        matches!(
            (self, next),
            (Stage::Created, Stage::Running | Stage::Exited)
                | (Stage::Running, Stage::Exited)
                | (Stage::Unknown, Stage::Exited)
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Start,
        /// With what the program makes of the signal: it ends with this code, or ignores it.
        Stop(Option<u8>),
        Kill,
        Ends(u8),
        Remove,
    }

    /// A container as those who ask the table carry its answers out, and what they told of it.
    struct World {
        /// None once it is removed.
        stage: Option<Stage>,
        /// The code of its process, which has ended and may not have been heard of.
        ended: Option<u8>,
        told: Vec<u8>,
        starts: u32,
    }

    impl World {
        fn new(stage: Stage) -> Self {
            Self { stage: Some(stage), ended: None, told: Vec::new(), starts: 0 }
        }

        fn go_on(&mut self, next: Stage) -> bool {
            let leads = self.stage.is_some_and(|stage| stage.leads_to(next));
            if leads {
                self.stage = Some(next);
            }
            leads
        }

        /// As `end::watch` does, however often it is called.
        fn hear(&mut self) {
            if let Some(code) = self.ended
                && self.go_on(Stage::Exited)
            {
                self.told.push(code);
            }
        }

        fn kill(&mut self, stage: Stage) {
            if stage.kill() != Kill::Nothing {
                self.ended.get_or_insert(137);
                self.hear();
            }
        }

        fn happen(&mut self, event: Event) {
            let Some(stage) = self.stage else { return };
            match event {
                Event::Start => {
                    if stage.start().is_ok() && self.ended.is_none() {
                        assert!(self.go_on(Stage::Running));
                        self.starts += 1;
                    }
                }
                Event::Stop(Some(code)) if stage.stops() => {
                    self.ended.get_or_insert(code);
                }
                Event::Stop(_) => {}
                Event::Kill => self.kill(stage),
                Event::Ends(code) => {
                    if !stage.is_over() {
                        self.ended.get_or_insert(code);
                    }
                    self.hear();
                }
                Event::Remove => {
                    self.kill(stage);
                    if self.stage.is_some_and(Stage::is_over) {
                        self.stage = None;
                    }
                }
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            any::<Option<u8>>().prop_map(Event::Stop),
            Just(Event::Kill),
            any::<u8>().prop_map(Event::Ends),
            Just(Event::Remove),
        ]
    }

    const ALL: [Stage; 4] = [Stage::Created, Stage::Running, Stage::Exited, Stage::Unknown];

    fn age(stage: Option<Stage>) -> u8 {
        match stage {
            Some(Stage::Unknown) => 0,
            Some(Stage::Created) => 1,
            Some(Stage::Running) => 2,
            Some(Stage::Exited) => 3,
            None => 4,
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_no_code_is_lost_and_nothing_goes_back(
            first in prop::sample::select(&ALL[..]),
            events in prop::collection::vec(event(), 0..40),
        ) {
            let mut world = World::new(first);
            for event in events {
                let before = (world.stage, world.told.clone());
                world.happen(event);
                prop_assert!(age(world.stage) >= age(before.0), "{event:?}: {before:?} → {:?}", world.stage);
                prop_assert!(world.told.starts_with(&before.1), "what was told stays: {:?}", world.told);
                prop_assert!(world.told.len() <= 1 && world.starts <= 1);
                match event {
                    // Whoever asked for its end has it, and twice is as once.
                    Event::Kill => prop_assert!(world.stage.is_none_or(Stage::is_over)),
                    Event::Remove => prop_assert_eq!(world.stage, None),
                    _ => {}
                }
                let after = (world.stage, world.told.clone());
                if matches!(event, Event::Kill | Event::Remove) {
                    world.happen(event);
                    prop_assert_eq!((world.stage, world.told.clone()), after);
                }
            }
            // One that ended on its own is told with its own code, however often it is heard.
            world.hear();
            if matches!(first, Stage::Created | Stage::Running) && world.stage.is_some() {
                prop_assert_eq!(world.told.first().copied(), world.ended);
            }
        }

        #[test]
        fn what_is_over_stays_over(from in prop::sample::select(&ALL[..]), to in prop::sample::select(&ALL[..])) {
            prop_assert!(!from.leads_to(from));
            if from.is_over() && from.leads_to(to) {
                prop_assert!(to.is_over());
            }
            prop_assert!(!(from.leads_to(to) && to.leads_to(from)));
            prop_assert_eq!(from.kill() == Kill::Nothing, from.is_over());
            // What can be started or stopped can end.
            prop_assert!(from.leads_to(Stage::Exited) || !(from.stops() || from.start().is_ok()));
        }
    }
}
