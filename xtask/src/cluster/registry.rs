//! What agnhost's `fake-registry-server` serves: one image, laid out as that program looks for it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::archive::{Start, configuration, digest, pack};

/// Where it looks, in its container.
const DIRECTORY: &str = "var/registry";
/// The name and tag that upstream's tests pull from it.
const IMAGE: &str = "pause";
const TAG: &str = "testing";

/// Whether a layer has the registry's files.
pub(super) fn is_in(root: &Path) -> bool {
    root.join(DIRECTORY).join(IMAGE).exists()
}

/// Puts the registry's files into a layer. Its image has one layer, of the directory `of` below `roots`.
pub(super) fn lay_out(root: &Path, roots: &Path, of: &str, start: &Start<'_>) -> Result<()> {
    let image = root.join(DIRECTORY).join(IMAGE);
    if image.exists() {
        fs::remove_dir_all(&image)?;
    }
    let (blobs, manifests) = (image.join("blobs"), image.join("manifests"));
    fs::create_dir_all(&blobs)?;
    let draft = blobs.join("draft");

    pack(&roots.join(of), &draft)?;
    let layer = store(&draft, &blobs)?;
    fs::write(&draft, configuration(start, &[&layer.digest]))?;
    let config = store(&draft, &blobs)?;
    let described = |what: &str, blob: &Blob| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{what}","digest":"{}","size":{}}}"#,
            blob.digest, blob.size
        )
    };
    fs::write(
        &draft,
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            described("config.v1+json", &config),
            described("layer.v1.tar", &layer),
        ),
    )?;
    let manifest = store(&draft, &manifests)?;
    fs::write(manifests.join(TAG), manifest.digest).context("naming the registry's image")
}

/// What the registry keeps under its digest.
struct Blob {
    digest: String,
    size: u64,
}

/// Moves a file to where its digest is looked for.
fn store(file: &Path, into: &Path) -> Result<Blob> {
    let digest = digest(file)?;
    let size = fs::metadata(file)?.len();
    let (algorithm, hash) = digest.split_once(':').context("a digest without a colon")?;
    let directory = into.join(algorithm).join(&hash[..2]).join(hash);
    fs::create_dir_all(&directory)?;
    fs::rename(file, directory.join("data")).context("storing a blob")?;
    Ok(Blob { digest, size })
}
