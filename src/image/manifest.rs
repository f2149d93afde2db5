//! Manifests and indexes: OCI image spec, and Docker's schema 2, which is the same by other names.

use std::collections::HashMap;

use serde::Deserialize;

use super::digest::Digest;
use crate::{Error, Result};

/// Bytes of a manifest or index (the distribution spec asks registries for 4 MiB at least).
pub const MAX_MANIFEST: usize = 4 << 20;
/// Layers that overlay stacks (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

/// What a client must say it understands, or a registry converts.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A verified pointer to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<Platform>,
    /// Of a foreign layer: where it is if no registry has it.
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    Index(Vec<Descriptor>),
    Image { config: Descriptor, layers: Vec<Descriptor> },
}

/// The wire form of both documents.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

impl Manifest {
    /// `content_type` is the registry's; the document's own media type wins.
    pub fn parse(bytes: &[u8], content_type: &str) -> Result<Self> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|e| Error::invalid(format!("it is not a manifest: {e}")))?;
        if document.schema_version == Some(1)
            || content_type.contains("manifest.v1+") && !is_oci(content_type)
        {
            return Err(Error::invalid(
                "it has Docker's schema 1, which registries gave up; push the image again with a current tool",
            ));
        }
        let kind = document.media_type.as_deref().unwrap_or(content_type);
        let is_index = INDEX_TYPES.contains(&kind);
        let is_manifest = MANIFEST_TYPES.contains(&kind);
        // A document that reads as both would be another image to another client (CVE-2021-41190).
        match (document.manifests, document.config, document.layers) {
            (Some(manifests), None, None) if !is_manifest => {
                // Attestations are pointed to from indexes and are not images.
                let is_image = |d: &RawDescriptor| {
                    let annotations = d.annotations.as_ref();
                    !annotations.is_some_and(|a| a.contains_key("vnd.docker.reference.type"))
                };
                let manifests = manifests.into_iter().filter(is_image).map(Descriptor::new);
                Ok(Self::Index(manifests.collect::<Result<_>>()?))
            }
            (None, Some(config), Some(layers)) if !is_index => {
                if layers.len() > MAX_LAYERS {
                    return Err(Error::invalid(format!(
                        "it has {} layers; {MAX_LAYERS} can be stacked",
                        layers.len()
                    )));
                }
                let config = Descriptor::new(config)?;
                if !config.media_type.is_empty() && !CONFIG_TYPES.contains(&config.media_type.as_str()) {
                    return Err(Error::invalid(format!(
                        "its config is of type {:?}: it is an artifact, not a container image",
                        config.media_type
                    )));
                }
                Ok(Self::Image {
                    config,
                    layers: layers.into_iter().map(Descriptor::new).collect::<Result<_>>()?,
                })
            }
            _ => Err(Error::invalid(format!("it is neither a manifest nor an index (its type is {kind:?})"))),
        }
    }
}

fn is_oci(content_type: &str) -> bool {
    content_type.starts_with("application/vnd.oci.")
}

impl Descriptor {
    fn new(raw: RawDescriptor) -> Result<Self> {
        let size = u64::try_from(raw.size)
            .map_err(|_| Error::invalid(format!("the size of {} is negative", raw.digest)))?;
        let digest = Digest::parse(&raw.digest)?;
        let foreign = [".rootfs.foreign.", ".layer.nondistributable."];
        let foreign = foreign.iter().any(|kind| raw.media_type.contains(kind));
        let urls = raw.urls.filter(|_| foreign).unwrap_or_default();
        Ok(Self { media_type: raw.media_type, digest, size, platform: raw.platform, urls })
    }

    /// Refuses layers that cannot be unpacked, by their media type.
    pub fn check_layer(&self) -> Result<()> {
        let kind = self.media_type.as_str();
        if kind.ends_with("+encrypted") {
            return Err(Error::invalid(format!(
                "layer {} is encrypted, which is not supported",
                self.digest
            )));
        }
        let layer = kind.is_empty() || kind.contains(".rootfs.") || kind.contains(".image.layer.");
        match layer {
            true => Ok(()),
            false => Err(Error::invalid(format!("layer {} has the unknown type {kind:?}", self.digest))),
        }
    }
}

impl Platform {
    /// What this daemon was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { architecture: architecture.into(), os: "linux".into(), variant: variant.map(str::to_owned) }
    }

    /// How well `self` fits the host; smaller is better, None not at all. As containerd has it: names
    /// that others use mean the same, plain amd64 is v1, the plain form of arm64 is v8 and that of arm v7;
    /// what an older processor of the family would run comes after what this one is.
    fn rank(&self, host: &Self) -> Option<usize> {
        let (architecture, variant) = self.normal();
        if !self.os.eq_ignore_ascii_case(&host.os) {
            return None;
        }
        if architecture == host.architecture {
            let same = variant.is_empty() || Some(variant) == host.variant.as_deref();
            return same.then_some(0);
        }
        match (host.architecture.as_str(), architecture, variant) {
            ("amd64", "386", "") => Some(1),
            ("arm64", "arm", "v8") => Some(1),
            ("arm64", "arm", "v7") => Some(2),
            ("arm64", "arm", "v6") => Some(3),
            ("arm64", "arm", "v5") => Some(4),
            _ => None,
        }
    }

    /// Architecture and variant; the latter is empty where it is the usual one.
    fn normal(&self) -> (&str, &str) {
        let variant = self.variant.as_deref().unwrap_or_default();
        match (self.architecture.as_str(), variant) {
            ("amd64" | "x86_64" | "x86-64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "386", _) => ("386", ""),
            ("arm64" | "aarch64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("arm", "" | "7") | ("armhf", _) => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") | ("armel", _) => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        }
    }
}

/// An index's entries that may hold an image for `host`, the best first: those that name its
/// platform, then nested indexes and entries that name none.
pub fn choose(entries: &[Descriptor], host: &Platform) -> Vec<Descriptor> {
    let rank = |entry: &Descriptor| match &entry.platform {
        Some(platform) if !platform.architecture.is_empty() => platform.rank(host),
        _ => Some(10),
    };
    let mut fitting: Vec<_> = entries.iter().filter_map(|e| rank(e).map(|rank| (rank, e))).collect();
    fitting.sort_by_key(|(rank, _)| *rank);
    fitting.into_iter().map(|(_, e)| e.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(of: &str) -> String {
        Digest::of(of.as_bytes()).to_string()
    }

    fn parse(value: serde_json::Value) -> Result<Manifest> {
        Manifest::parse(value.to_string().as_bytes(), "")
    }

    fn image() -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": CONFIG_TYPES[0], "digest": digest("c"), "size": 3},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest("l"), "size": 4}],
        })
    }

    fn entry(of: &str, platform: Option<(&str, &str, Option<&str>)>) -> serde_json::Value {
        let platform = platform.map(
            |(os, architecture, variant)| json!({"os": os, "architecture": architecture, "variant": variant}),
        );
        json!({"mediaType": MANIFEST_TYPES[0], "digest": digest(of), "size": 1, "platform": platform})
    }

    #[test]
    fn both_families_of_media_types_are_read() {
        for kind in MANIFEST_TYPES {
            let mut value = image();
            value["mediaType"] = kind.into();
            let Manifest::Image { config, layers } = parse(value).unwrap() else { panic!() };
            assert_eq!((config.size, layers.len()), (3, 1));
            layers[0].check_layer().unwrap();
        }
        for kind in INDEX_TYPES {
            let value = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry("a", None)]});
            assert!(matches!(parse(value).unwrap(), Manifest::Index(list) if list.len() == 1));
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_sentence() {
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(parse(schema1).unwrap_err().message.contains("schema 1"));
        let mut both = image();
        both["manifests"] = json!([]);
        assert!(parse(both).unwrap_err().message.contains("neither"));
        let mut lying = image();
        lying["mediaType"] = INDEX_TYPES[0].into();
        assert!(parse(lying).is_err());
        let mut artifact = image();
        artifact["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
        assert!(parse(artifact).unwrap_err().message.contains("artifact"));
        let mut negative = image();
        negative["layers"][0]["size"] = (-1).into();
        assert!(parse(negative).unwrap_err().message.contains("negative"));
        let mut encrypted = image();
        encrypted["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
        let Manifest::Image { layers, .. } = parse(encrypted).unwrap() else { panic!() };
        assert!(layers[0].check_layer().unwrap_err().message.contains("encrypted"));
        let mut path = image();
        path["layers"][0]["digest"] = "../../etc".into();
        assert!(parse(path).is_err());
    }

    #[test]
    fn the_platform_of_the_host_is_chosen() {
        let host = Platform { architecture: "amd64".into(), os: "linux".into(), variant: None };
        let entries = json!({"manifests": [
            entry("none", None),
            entry("arm", Some(("linux", "arm64", Some("v8")))),
            entry("windows", Some(("windows", "amd64", None))),
            entry("v3", Some(("linux", "amd64", Some("v3")))),
            entry("amd64", Some(("linux", "amd64", None))),
            entry("unknown", Some(("unknown", "unknown", None))),
        ]});
        let Manifest::Index(list) = parse(entries).unwrap() else { panic!() };
        let chosen: Vec<_> = choose(&list, &host).iter().map(|d| d.digest.to_string()).collect();
        assert_eq!(chosen, [digest("amd64"), digest("none")]);
    }

    #[test]
    fn platforms_go_by_other_names_and_older_ones_do_in_need() {
        let platform = |architecture: &str, variant: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        };
        let (amd64, arm64) = (platform("amd64", ""), platform("arm64", "v8"));
        for (name, variant, on_amd64, on_arm64) in [
            ("amd64", "v1", Some(0), None),
            ("x86_64", "", Some(0), None),
            ("amd64", "v2", None, None),
            ("386", "", Some(1), None),
            ("arm64", "", None, Some(0)),
            ("arm64", "v8", None, Some(0)),
            ("aarch64", "", None, Some(0)),
            ("arm64", "v9", None, None),
            ("arm", "v8", None, Some(1)),
            ("arm", "", None, Some(2)),
            ("arm", "v6", None, Some(3)),
            ("arm", "v5", None, Some(4)),
            ("riscv64", "", None, None),
        ] {
            let it = platform(name, variant);
            assert_eq!((it.rank(&amd64), it.rank(&arm64)), (on_amd64, on_arm64), "{name} {variant}");
        }
        assert_eq!(Platform { os: "windows".into(), ..platform("amd64", "") }.rank(&amd64), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes, "");
        }

        #[test]
        fn any_sizes_parse_or_are_refused(size in any::<i64>()) {
            let mut value = image();
            value["config"]["size"] = size.into();
            prop_assert_eq!(parse(value).is_ok(), size >= 0);
        }
    }
}
