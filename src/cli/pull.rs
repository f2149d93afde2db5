//! `podwright pull`

use std::process::ExitCode;

use clap::Args;

use crate::cli::client::{Client, Endpoint};
use crate::cli::image::Bars;
use crate::cli::print;
use crate::cri::wire::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct Pull {
    #[command(flatten)]
    endpoint: Endpoint,
    /// REGISTRY/NAME:TAG or REGISTRY/NAME@DIGEST
    image: String,
    /// USER:PASSWORD, for a registry that asks for them
    #[arg(long, value_name = "USER:PASSWORD", env = "PODWRIGHT_CREDENTIALS", hide_env_values = true)]
    credentials: Option<String>,
}

impl Pull {
    pub(super) fn run(self) -> Result<ExitCode> {
        let auth = self.credentials.as_deref().map(credentials).transpose()?;
        self.endpoint.run(async |mut client: Client| {
            let bars = Bars::draw(&client, &self.image);
            let pulled = client.pull(&self.image, auth).await;
            drop(bars);
            print(format!("{}\n", pulled?))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn credentials(text: &str) -> Result<AuthConfig> {
    let (username, password) = text
        .split_once(':')
        .ok_or_else(|| Error::invalid("--credentials: there is no colon between user and password"))?;
    Ok(AuthConfig { username: username.into(), password: password.into(), ..Default::default() })
}

impl Client {
    /// The image's reference in the runtime.
    pub async fn pull(&mut self, image: &str, auth: Option<AuthConfig>) -> Result<String> {
        let request = PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
        let pulled = self.images.pull_image(request).await;
        Ok(pulled.map_err(|e| Error::from(e).during(format!("pulling {image}")))?.into_inner().image_ref)
    }

    /// Pulls it only where it is missing.
    pub async fn ensure_image(&mut self, image: &str) -> Result<()> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        if self.images.image_status(request).await?.into_inner().image.is_none() {
            self.pull(image, None).await?;
        }
        Ok(())
    }
}

/// An image as a request names it.
pub(super) fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..Default::default() }
}
