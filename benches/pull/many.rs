//! Questions about images where there are many.

use std::time::{Duration, Instant};

use podwright::cri::wire as cri;
use sha2::{Digest, Sha256};

use super::registry::{Registry, hex};
use super::{Failure, Images, pull, spec};

const IMAGES: usize = 500;
const ASKED: usize = 200;

/// Pulls 500 images of one layer, and asks for one and for all of them.
pub async fn many(registry: &Registry, images: &mut Images) -> Result<(), Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    push(registry.port).await?;
    let names: Vec<_> =
        (0..IMAGES).map(|number| format!("127.0.0.1:{}/bench/many:v{number}", registry.port)).collect();
    let started = Instant::now();
    for some in names.chunks(20) {
        let pulls = some.iter().map(|name| {
            let mut images = images.clone();
            async move { pull(&mut images, name).await }
        });
        futures_util::future::try_join_all(pulls).await?;
    }
    println!("many: {IMAGES} images pulled, 20 at once, in {:.2} s", started.elapsed().as_secs_f64());
    let (mut statuses, mut lists) = (Vec::new(), Vec::new());
    for name in names.iter().cycle().take(ASKED) {
        let started = Instant::now();
        let request = cri::ImageStatusRequest { image: spec(name), ..Default::default() };
        let status = images.image_status(request).await?.into_inner();
        statuses.push(started.elapsed());
        status.image.ok_or("an image is not there")?;
        let started = Instant::now();
        let list = images.list_images(cri::ListImagesRequest::default()).await?.into_inner();
        lists.push(started.elapsed());
        if list.images.len() < IMAGES {
            return Err(format!("{} images are listed", list.images.len()).into());
        }
    }
    println!("many: ImageStatus {}, ListImages {}", shown(statuses), shown(lists));
    for name in &names {
        images.remove_image(cri::RemoveImageRequest { image: spec(name) }).await?;
    }
    Ok(())
}

fn shown(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms", ms(times.len() / 2), ms(times.len() * 99 / 100))
}

async fn push(port: u16) -> Result<(), Failure> {
    let client = reqwest::Client::new();
    let repository = format!("http://127.0.0.1:{port}/v2/bench/many");
    // The end of an archive: a layer without entries.
    let layer = vec![0; 1024];
    upload(&client, &repository, &layer).await?;
    for number in 0..IMAGES {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "author": number.to_string(),
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"], "Cmd": ["/bin/server"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        upload(&client, &repository, &config).await?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config),
                       "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer),
                        "size": layer.len()}],
        });
        let put = client.put(format!("{repository}/manifests/v{number}")).header("content-type", kind);
        put.body(manifest.to_string()).send().await?.error_for_status()?;
    }
    Ok(())
}

async fn upload(client: &reqwest::Client, repository: &str, bytes: &[u8]) -> Result<(), Failure> {
    let begun = client.post(format!("{repository}/blobs/uploads/")).send().await?.error_for_status()?;
    let location = begun.headers().get("location").ok_or("an upload without a place")?.to_str()?;
    let digest = digest(bytes).replace(':', "%3A");
    let put =
        client.put(format!("{location}&digest={digest}")).header("content-type", "application/octet-stream");
    put.body(bytes.to_vec()).send().await?.error_for_status()?;
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(Sha256::new_with_prefix(bytes)))
}
