//! Stop signals. The wire's numbers are not Linux' (BEHAVIOUR 11), so names travel inwards.

use crate::cri::decode::known;
use crate::cri::wire;
use crate::error::Result;

/// In the form of kill(1): "SIGTERM", "SIGRTMIN+1". None: not given.
pub(super) fn stop_signal(field: &str, value: i32) -> Result<Option<String>> {
    match known(field, value)? {
        wire::Signal::RuntimeDefault => Ok(None),
        signal => {
            let name = signal.as_str_name().trim_start_matches("SIGNAL_");
            Ok(Some(name.replace("PLUS", "+").replace("MINUS", "-")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::encode;

    #[test]
    fn behaviour_11_signals_travel_by_name() {
        assert_eq!(stop_signal("f", 0).unwrap(), None);
        assert_eq!(stop_signal("f", 13).unwrap().unwrap(), "SIGKILL");
        assert_eq!(stop_signal("f", 36).unwrap().unwrap(), "SIGRTMIN+1");
        assert_eq!(stop_signal("f", 51).unwrap().unwrap(), "SIGRTMAX-14");
        assert!(stop_signal("f", 66).is_err() && stop_signal("f", -1).is_err());
    }

    #[test]
    fn every_signal_comes_back_as_it_went_in() {
        for value in 1..=65 {
            let name = stop_signal("f", value).unwrap().unwrap();
            assert_eq!(i32::from(encode::container::signal(&name)), value, "{name}");
        }
        assert_eq!(encode::container::signal("TERM"), wire::Signal::Sigterm);
        assert_eq!(encode::container::signal("37"), wire::Signal::RuntimeDefault);
    }
}
