//! What reads a stranger's bytes, as fuzz targets: for `fuzz/`, and for the test below, which replays
//! the seeds and their neighbours. Not part of what is installed.

pub use crate::image::fuzz::{
    gunzip, hosts_toml, manifest, reference, registries_conf, tar_layer, www_authenticate,
};
pub use crate::stream::fuzz::{
    spdy_frames, spdy_headers, spdy_session, websocket_channels, websocket_session, websocket_tunnel,
};

/// Runs on any bytes; panics where what must hold does not.
pub struct Target {
    /// Of its file in `fuzz/fuzz_targets`, and of its function.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Where to begin; and what was found once.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident in $home:path as $seeds:ident;)*) => {
        &[$(Target { name: stringify!($name), run: $name, seeds: { use $home as home; home::$seeds } }),*]
    };
}

pub const TARGETS: &[Target] = targets! {
    spdy_frames in crate::stream::fuzz as frame_seeds;
    spdy_headers in crate::stream::fuzz as header_seeds;
    spdy_session in crate::stream::fuzz as session_seeds;
    websocket_channels in crate::stream::fuzz as channel_seeds;
    websocket_session in crate::stream::fuzz as message_seeds;
    websocket_tunnel in crate::stream::fuzz as message_seeds;
    reference in crate::image::fuzz as reference_seeds;
    manifest in crate::image::fuzz as manifest_seeds;
    hosts_toml in crate::image::fuzz as hosts_toml_seeds;
    registries_conf in crate::image::fuzz as registries_conf_seeds;
    www_authenticate in crate::image::fuzz as www_authenticate_seeds;
    tar_layer in crate::image::fuzz as tar_seeds;
    gunzip in crate::image::fuzz as gunzip_seeds;
};

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each seed, and what lies next to it: shorter, with a byte changed, with a part twice.
    fn neighbours(seed: &[u8]) -> Vec<Vec<u8>> {
        let mut all = vec![seed.to_vec()];
        let step = seed.len().div_ceil(24).max(1);
        for at in (0..seed.len()).step_by(step) {
            all.push(seed[..at].to_vec());
            for change in [0x01, 0x80, 0xff] {
                let mut changed = seed.to_vec();
                changed[at] ^= change;
                all.push(changed);
            }
            all.push([&seed[..at], &seed[at / 2..]].concat());
        }
        all
    }

    #[test]
    fn the_seeds_and_their_neighbours_break_nothing() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seed", target.name);
            (target.run)(&[]);
            seeds.iter().flat_map(|seed| neighbours(seed)).for_each(|input| (target.run)(&input));
        }
    }

    #[test]
    fn every_target_has_its_file() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest: toml::Table =
            toml::from_str(&std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap()).unwrap();
        let programs = manifest["bin"].as_array().unwrap();
        let names: Vec<_> = programs.iter().map(|program| program["name"].as_str().unwrap()).collect();
        for target in TARGETS {
            let file = format!("fuzz_targets/{}.rs", target.name);
            let source = std::fs::read_to_string(fuzz.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(source.contains(&format!("podwright_fuzz::target!({});", target.name)), "{file}");
            assert!(names.contains(&target.name), "{} is not in fuzz/Cargo.toml", target.name);
        }
        assert_eq!(names.len(), TARGETS.len());
    }
}
