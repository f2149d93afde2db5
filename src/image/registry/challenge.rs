//! The WWW-Authenticate header (RFC 9110, 11.6.1): a list of challenges, each with parameters.

/// One challenge. The scheme and the parameters' names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header line; what follows a syntax error is ignored.
pub fn parse(header: &[u8]) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut input = Input { bytes: header };
    loop {
        input.skip(b" \t,");
        let Some(word) = input.token() else { return challenges };
        let after_word = input.bytes;
        input.skip(b" \t");
        // `word =` goes on with the parameters of the last challenge; else a new one begins.
        if input.bytes.starts_with(b"=") {
            let (Some(value), Some(challenge)) = (input.param_value(), challenges.last_mut()) else {
                return challenges;
            };
            challenge.params.push((word.to_ascii_lowercase(), value));
        } else {
            input.bytes = after_word;
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() });
            input.skip_token68();
        }
    }
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl Input<'_> {
    fn skip(&mut self, set: &[u8]) {
        let end = self.bytes.iter().position(|b| !set.contains(b)).unwrap_or(self.bytes.len());
        self.bytes = &self.bytes[end..];
    }

    fn token(&mut self) -> Option<String> {
        let is_tchar = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        self.run(is_tchar)
    }

    fn run(&mut self, is_in: impl Fn(&u8) -> bool) -> Option<String> {
        let end = self.bytes.iter().position(|b| !is_in(b)).unwrap_or(self.bytes.len());
        let (run, rest) = self.bytes.split_at(end);
        self.bytes = rest;
        (!run.is_empty()).then(|| String::from_utf8_lossy(run).into_owned())
    }

    /// `= token` or `= "quoted"`.
    fn param_value(&mut self) -> Option<String> {
        self.bytes = self.bytes.strip_prefix(b"=")?;
        self.skip(b" \t");
        match self.bytes.strip_prefix(b"\"") {
            Some(rest) => {
                self.bytes = rest;
                self.quoted()
            }
            // Some registries leave URLs unquoted.
            None => self.run(|b| !b" \t,\"".contains(b)),
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let mut value = Vec::new();
        loop {
            let (&byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            match byte {
                b'"' => return Some(String::from_utf8_lossy(&value).into_owned()),
                b'\\' => {
                    let (&escaped, rest) = self.bytes.split_first()?;
                    self.bytes = rest;
                    value.push(escaped);
                }
                byte => value.push(byte),
            }
        }
    }

    /// A scheme may have one blob (`Negotiate abc==`) where others have parameters.
    fn skip_token68(&mut self) {
        let before = self.bytes;
        self.skip(b" \t");
        let is_in = |b: &u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(b);
        if self.run(is_in).is_some() {
            self.skip(b"=");
            self.skip(b" \t");
            if self.bytes.is_empty() || self.bytes.starts_with(b",") {
                return;
            }
        }
        self.bytes = before;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_bearer_challenge() {
        let header = br#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push",error="invalid_token""#;
        let [bearer] = &parse(header)[..] else { panic!() };
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.param("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(bearer.param("scope"), Some("repository:library/busybox:pull,push"));
        assert_eq!(bearer.param("error"), Some("invalid_token"));
    }

    #[test]
    fn several_challenges_in_one_line() {
        let header = br#"Negotiate, Digest abc+/==, BASIC Realm = "a \"b\" \\ c" , charset=UTF-8,, Bearer realm=https://x/y?z=1 ,scope="" "#;
        let list = parse(header);
        let schemes: Vec<_> = list.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "digest", "basic", "bearer"]);
        assert_eq!(list[2].param("realm"), Some(r#"a "b" \ c"#));
        assert_eq!(list[2].param("charset"), Some("UTF-8"));
        assert_eq!(list[3].param("realm"), Some("https://x/y?z=1"));
        assert_eq!(list[3].param("scope"), Some(""));
    }

    #[test]
    fn nonsense_gives_what_could_be_read() {
        assert!(parse(b"").is_empty());
        assert!(parse(b"=x").is_empty());
        assert!(parse(b"a=b").is_empty());
        assert_eq!(parse(b"Basic realm=\"open").len(), 1);
        assert_eq!(parse(b"Basic").len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            parse(&bytes);
        }

        #[test]
        fn quoted_values_come_back(value in "[ -~]{0,40}", scheme in "[A-Za-z]{1,10}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let list = parse(format!("{scheme} realm=\"{quoted}\", other=x").as_bytes());
            prop_assert_eq!(list.len(), 1);
            prop_assert_eq!(list[0].param("realm"), Some(value.as_str()));
            prop_assert_eq!(list[0].param("other"), Some("x"));
        }
    }
}
