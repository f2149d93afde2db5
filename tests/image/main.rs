//! Pulls from Debian's docker-registry, of images that skopeo pushed in every form.
//!
//! Needs root, docker-registry, skopeo and htpasswd; `hack/test` installs them. Without them the
//! tests say so and pass, unless CI is set.

mod budget;
mod durability;
mod forms;
mod power;
mod proxy;
mod support;
mod tls;
mod token;
mod umoci;
