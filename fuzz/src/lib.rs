//! What the targets have in common: each is a function of podwright's, with its seeds.

/// A libFuzzer program of this target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        libfuzzer_sys::fuzz_target!(init: $crate::write_seeds(stringify!($name)), |data: &[u8]| {
            podwright::fuzz::$name(data)
        });
    };
}

/// Into the directory that the environment's FUZZ_SEEDS names, before libFuzzer reads it.
pub fn write_seeds(name: &str) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS") else { return };
    let seeds =
        podwright::fuzz::TARGETS.iter().find(|target| target.name == name).map(|target| (target.seeds)());
    for (number, seed) in seeds.into_iter().flatten().enumerate() {
        let path = std::path::Path::new(&directory).join(format!("seed-{number}"));
        if let Err(error) = std::fs::write(&path, seed) {
            panic!("writing {}: {error}", path.display());
        }
    }
}
