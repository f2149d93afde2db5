//! The generated types of `proto/`. Only this folder and CRI clients use them.

use std::fmt;

#[allow(clippy::all)]
mod generated {
    tonic::include_proto!("runtime.v1");
}

pub use generated::*;

/// `proto/store.proto`.
pub mod store {
    #[allow(clippy::all)]
    mod generated {
        tonic::include_proto!("podwright.image");
    }

    pub use generated::*;
}

/// `proto/cri.proto` as a serialised FileDescriptorSet.
#[cfg(test)]
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

impl fmt::Debug for AuthConfig {
    /// Without what the proto marks as debug_redact, which prost ignores.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_interface_has_its_43_calls_in_package_runtime_v1() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let file = set.file.iter().find(|f| f.package() == "runtime.v1").unwrap();
        let calls = |name: &str| {
            let service = file.service.iter().find(|s| s.name() == name).unwrap();
            service.method.len()
        };
        assert_eq!((calls("RuntimeService"), calls("ImageService")), (37, 6));
    }

    #[test]
    fn credentials_are_not_printed() {
        let request = PullImageRequest {
            auth: Some(AuthConfig {
                username: "ada".into(),
                password: "s3cret-p".into(),
                auth: "s3cret-a".into(),
                server_address: "registry.example".into(),
                identity_token: "s3cret-i".into(),
                registry_token: "s3cret-r".into(),
            }),
            ..Default::default()
        };
        let text = format!("{request:?}");
        assert!(text.contains("ada") && text.contains("registry.example"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}
