//! Image references and credentials.

use crate::container::spec::ImageSpec;
use crate::cri::decode::{given, text};
use crate::cri::wire;
use crate::error::{Error, Result};
use crate::image::Auth;

/// The name, digest or ID that a call is about. References are parsed by the image store.
pub(in crate::cri) fn reference(image: Option<&wire::ImageSpec>) -> Result<&str> {
    match given("image", image)?.image.as_str() {
        "" => Err(Error::invalid("image.image is empty")),
        reference => Ok(reference),
    }
}

/// None: all images.
pub(in crate::cri) fn filter(filter: Option<&wire::ImageFilter>) -> Option<&str> {
    let image = filter?.image.as_ref()?.image.as_str();
    (!image.is_empty()).then_some(image)
}

pub(in crate::cri) fn auth(auth: Option<wire::AuthConfig>) -> Auth {
    let auth = auth.unwrap_or_default();
    Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

/// A container's image.
pub(super) fn spec(image: Option<wire::ImageSpec>) -> Result<ImageSpec> {
    reference(image.as_ref()).map_err(|e| Error::invalid(format!("config.{}", e.message)))?;
    spec_of("config.image", image.unwrap_or_default())
}

pub(super) fn spec_of(field: &str, image: wire::ImageSpec) -> Result<ImageSpec> {
    Ok(ImageSpec {
        image: text::plain(&format!("{field}.image"), image.image)?,
        annotations: image.annotations,
        user_specified_image: image.user_specified_image,
        runtime_handler: image.runtime_handler,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_needed_but_in_filters() {
        let empty = wire::ImageSpec::default();
        assert!(reference(None).is_err() && reference(Some(&empty)).is_err());
        let unset = wire::ImageFilter { image: Some(empty) };
        assert_eq!((filter(None), filter(Some(&unset))), (None, None));
    }

    #[test]
    fn credentials_arrive_and_stay_unprinted() {
        let auth = auth(Some(wire::AuthConfig {
            username: "ada".into(),
            password: "s3cret".into(),
            ..Default::default()
        }));
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("ada", "s3cret"));
        assert!(!format!("{auth:?}").contains("s3cret"));
    }
}
