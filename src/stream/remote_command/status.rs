//! How a command ended, as its client is told: the part of Kubernetes' `Status` that clients read.

use serde_json::json;

use super::StatusForm;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Success,
    /// The program ended with this code, which is not zero.
    Exit(i32),
    /// It did not come to that, or was broken off.
    Error(String),
}

impl Status {
    pub fn of_exit(code: i32) -> Self {
        if code == 0 { Self::Success } else { Self::Exit(code) }
    }

    /// What goes on the error stream. None: nothing.
    pub fn text(&self, form: StatusForm) -> Option<String> {
        match form {
            StatusForm::Json => Some(self.json().to_string()),
            StatusForm::Text => match self {
                Self::Success => None,
                Self::Exit(code) => Some(exit_message(*code)),
                Self::Error(message) => Some(internal_message(message)),
            },
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": exit_message(*code),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Error(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": internal_message(message),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        }
    }
}

fn exit_message(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

fn internal_message(message: &str) -> String {
    format!("Internal error occurred: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_16_the_exit_code_is_in_the_causes() {
        let text = Status::of_exit(137).text(StatusForm::Json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["reason"], "NonZeroExitCode");
        assert_eq!(json["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "137" }));
        let text = Status::of_exit(0).text(StatusForm::Json).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["status"], "Success");
    }

    #[test]
    fn old_clients_get_text() {
        assert_eq!(Status::of_exit(0).text(StatusForm::Text), None);
        assert!(Status::of_exit(3).text(StatusForm::Text).unwrap().ends_with("exit status 3"));
        let text = Status::Error("exec \"x\": no such file".into()).text(StatusForm::Text).unwrap();
        assert!(text.ends_with("exec \"x\": no such file"));
    }
}
