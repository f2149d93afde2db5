//! What a container's process is called with (BEHAVIOUR 19): arguments, environment, and where its
//! program is looked for.

use crate::{Error, Result};

/// Docker's, and every CRI runtime's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the environment is made of. `image` entries are NAME=VALUE.
pub struct EnvWish<'a> {
    pub image: &'a [String],
    pub request: &'a [(String, Vec<u8>)],
    pub hostname: &'a str,
    /// From the container's passwd.
    pub home: Option<&'a str>,
    pub tty: bool,
}

/// The arguments: `command` replaces the image's Entrypoint and drops its Cmd, `args` replace its Cmd.
/// INVALID_ARGUMENT if nothing is left, or if one holds a NUL, which no process can be given.
pub fn argv(
    command: &[String],
    args: &[String],
    entrypoint: &[String],
    cmd: &[String],
) -> Result<Vec<String>> {
    let argv = match (command.is_empty(), args.is_empty()) {
        (true, true) => [entrypoint_of(entrypoint), cmd].concat(),
        (true, false) => [entrypoint_of(entrypoint), args].concat(),
        (false, _) => [command, args].concat(),
    };
    if argv.is_empty() {
        return Err(Error::invalid("no command: neither the request nor the image names one"));
    }
    match argv.iter().position(|argument| argument.contains('\0')) {
        Some(n) => Err(Error::invalid(format!("argument {n} of the command holds a NUL byte"))),
        None => Ok(argv),
    }
}

/// `ENTRYPOINT [""]` is how a Dockerfile takes back the one of its base.
fn entrypoint_of(entrypoint: &[String]) -> &[String] {
    if entrypoint == [""] { &[] } else { entrypoint }
}

/// NAME=VALUE entries: defaults, which the image overrides, which the request overrides. A name keeps
/// the place where it came first.
pub fn environment(wish: &EnvWish<'_>) -> Vec<Vec<u8>> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.as_bytes());
    env.set("HOSTNAME", wish.hostname.as_bytes());
    if wish.tty {
        env.set("TERM", b"xterm");
    }
    for (name, value) in wish.image.iter().filter_map(|entry| entry.split_once('=')) {
        env.set(name, value.as_bytes());
    }
    for (name, value) in wish.request {
        env.set(name, value);
    }
    if env.get("HOME").is_none() {
        env.set("HOME", wish.home.unwrap_or("/").as_bytes());
    }
    env.entries.into_iter().map(|(name, value)| [name.as_bytes(), b"=", &value].concat()).collect()
}

/// INVALID_ARGUMENT if an entry holds a NUL: the process would see it cut short.
pub fn check_environment(env: &[Vec<u8>]) -> Result<()> {
    match env.iter().find(|entry| entry.contains(&0)) {
        None => Ok(()),
        Some(entry) => {
            let name = entry.split(|byte| matches!(byte, b'=' | 0)).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            Err(Error::invalid(format!("environment variable {name:?} holds a NUL byte")))
        }
    }
}

/// Where execvp(3) would look for `argv[0]`, in order: itself if it holds a slash (relative to the
/// working directory then), else that name in each directory of PATH in `env`, made absolute by `cwd`.
pub fn candidates(argv: &[String], env: &[Vec<u8>], cwd: &str) -> Vec<Vec<u8>> {
    let name = argv.first().map(String::as_bytes).unwrap_or_default();
    if name.is_empty() || name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix(b"PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH.as_bytes()).split(|byte| *byte == b':');
    directories
        .map(|directory| {
            // An empty entry of PATH is the working directory.
            let base: &[&[u8]] = match directory.first() {
                Some(b'/') => &[directory],
                Some(_) => &[cwd.as_bytes(), directory],
                None => &[cwd.as_bytes()],
            };
            let mut path = Vec::new();
            for part in base.iter().chain([&name]) {
                path.extend(*part);
                if !part.ends_with(b"/") {
                    path.push(b'/');
                }
            }
            path.pop();
            path
        })
        .collect()
}

/// Few enough to be searched one by one up to hundreds; kubelet sends some for each service, so that
/// a large namespace has thousands: hence the index.
#[derive(Default)]
struct Environment<'a> {
    entries: Vec<(&'a str, Vec<u8>)>,
    places: std::collections::HashMap<&'a str, usize>,
}

impl<'a> Environment<'a> {
    fn set(&mut self, name: &'a str, value: &[u8]) {
        match self.places.get(name) {
            Some(place) => self.entries[*place].1 = value.to_vec(),
            None => {
                self.places.insert(name, self.entries.len());
                self.entries.push((name, value.to_vec()));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.places.get(name).map(|place| self.entries[*place].1.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(words: &str) -> Vec<String> {
        words.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn behaviour_19_command_and_args_replace_what_the_image_has() {
        let table = [
            ("", "", "entry e", "cmd c", "entry e cmd c"),
            ("", "arg", "entry", "cmd", "entry arg"),
            ("command", "", "entry", "cmd", "command"),
            ("command", "arg", "entry", "cmd", "command arg"),
            ("", "", "", "cmd", "cmd"),
            ("", "", "entry", "", "entry"),
            ("", "arg", "", "", "arg"),
        ];
        for (command, args, entrypoint, cmd, wanted) in table {
            let argv = argv(&list(command), &list(args), &list(entrypoint), &list(cmd)).unwrap();
            assert_eq!(argv, list(wanted), "{command:?} {args:?} {entrypoint:?} {cmd:?}");
        }
        assert_eq!(argv(&[], &[], &[String::new()], &list("cmd")).unwrap(), ["cmd"]);
    }

    #[test]
    fn behaviour_19_nothing_to_run_is_an_error() {
        assert!(argv(&[], &[], &[], &[]).unwrap_err().message.contains("no command"));
        assert!(argv(&[], &[], &[String::new()], &[]).is_err());
        assert!(argv(&["a\0b".to_owned()], &[], &[], &[]).unwrap_err().message.contains("NUL"));
    }

    fn env(image: &str, request: &[(&str, &[u8])], tty: bool) -> Vec<String> {
        let request: Vec<_> = request.iter().map(|(n, v)| (n.to_string(), v.to_vec())).collect();
        let image = list(image);
        let wish = EnvWish { image: &image, request: &request, hostname: "h", home: Some("/root"), tty };
        environment(&wish).iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
    }

    #[test]
    fn behaviour_19_environment_in_order() {
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(env("", &[], false), [path.as_str(), "HOSTNAME=h", "HOME=/root"]);
        assert_eq!(env("", &[], true), [path.as_str(), "HOSTNAME=h", "TERM=xterm", "HOME=/root"]);
        let given = env("A=1 PATH=/bin B=x=y bare", &[("A", b"2"), ("HOME", b""), ("TERM", b"vt100")], true);
        assert_eq!(given, ["PATH=/bin", "HOSTNAME=h", "TERM=vt100", "A=2", "B=x=y", "HOME="]);
    }

    #[test]
    fn values_are_bytes_without_nul() {
        let request = [("K".to_owned(), vec![0xff, b'=', b'\n']), ("N".to_owned(), vec![b'a', 0])];
        let wish = EnvWish { image: &[], request: &request, hostname: "h", home: None, tty: false };
        let env = environment(&wish);
        assert!(env.contains(&b"K=\xff=\n".to_vec()) && env.contains(&b"HOME=/".to_vec()));
        assert!(check_environment(&env).unwrap_err().message.contains("\"N\""));
        assert!(check_environment(&env[..3]).is_ok());
    }

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        let at = |name: &str, path: &str, cwd: &str| {
            let found = candidates(&[name.to_owned()], &[format!("PATH={path}").into_bytes()], cwd);
            found.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(at("sh", "/bin:/usr/bin/", "/w"), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(at("sh", ":/bin:rel", "/w"), ["/w/sh", "/bin/sh", "/w/rel/sh"]);
        assert_eq!(at("sh", "/", "/"), ["/sh"]);
        assert_eq!(at("sh", "", "/"), ["/sh"]);
        assert_eq!(at("/bin/sh", "/x", "/w"), ["/bin/sh"]);
        assert_eq!(at("./sh", "/x", "/w"), ["./sh"]);
        assert_eq!(at("", "/x", "/w"), [""]);
        assert_eq!(candidates(&["sh".to_owned()], &[], "/").len(), 6);
    }

    proptest! {
        #[test]
        fn each_name_is_there_once_and_the_last_value_wins(
            request in proptest::collection::vec(("[A-D]", proptest::collection::vec(1u8.., 0..4)), 0..20)
        ) {
            let wish = EnvWish { image: &[], request: &request, hostname: "h", home: None, tty: false };
            let env = environment(&wish);
            for (name, _) in &request {
                let last = request.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value);
                let prefix = format!("{name}=");
                let found: Vec<_> = env.iter().filter_map(|e| e.strip_prefix(prefix.as_bytes())).collect();
                prop_assert_eq!(found, vec![last.unwrap().as_slice()]);
            }
        }
    }
}
