//! A kubeconfig, and the files it names: read when the agent starts, and again where they changed since.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::connection;

/// With whose rights the API server is asked, as a file says.
pub(super) struct Credentials {
    kubeconfig: PathBuf,
    /// Files that were read, as old as they were then.
    read: Mutex<Vec<(PathBuf, Option<SystemTime>)>>,
}

impl Credentials {
    pub(super) fn new(kubeconfig: PathBuf) -> Self {
        Self {
            kubeconfig,
            read: Mutex::default(),
        }
    }

    /// A client with what the files hold now.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let file = self.kubeconfig.display();
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)
            .with_context(|| format!("cannot read kubeconfig {file}: check --kubeconfig"))?;
        let clusters = kubeconfig.clusters.iter();
        ensure!(
            clusters
                .filter_map(|named| named.cluster.as_ref())
                .all(|cluster| cluster.proxy_url.is_none()),
            "kubeconfig {file} has a proxy-url, which is not supported: name an address of the API server that this node \
             reaches"
        );
        let stamps = named_files(&self.kubeconfig, &kubeconfig)
            .into_iter()
            .map(|file| (file.clone(), age(&file)))
            .collect();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("kubeconfig {file} is not usable"))?;
        let client = connection::client(config).context("cannot set up the API client")?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = stamps;
        Ok(client)
    }

    /// Whether a file is another than was read.
    pub(super) fn changed(&self) -> bool {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.iter().any(|(file, then)| age(file) != *then)
    }
}

fn age(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|found| found.modified()).ok()
}

fn named_files(file: &Path, kubeconfig: &Kubeconfig) -> Vec<PathBuf> {
    let users = kubeconfig.auth_infos.iter();
    let users = users.filter_map(|named| named.auth_info.as_ref());
    let certificates = users.flat_map(|user| [&user.client_certificate, &user.client_key]);
    let clusters = kubeconfig.clusters.iter();
    let clusters = clusters.filter_map(|named| named.cluster.as_ref());
    let authorities = clusters.map(|cluster| &cluster.certificate_authority);
    let named = certificates.chain(authorities).flatten().map(PathBuf::from);
    [file.to_owned()].into_iter().chain(named).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn kubeconfig(directory: &Path, cluster: &str) -> Credentials {
        let file = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://127.0.0.1:1'{cluster}}}}}]\n\
             users: [{{name: u, user: {{tokenFile: {0}/token}}}}]\n",
            directory.display()
        );
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("token"), "secret").unwrap();
        fs::write(directory.join("ca.crt"), "").unwrap();
        fs::write(&file, text).unwrap();
        Credentials::new(file)
    }

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("beeline-credentials-{}-{name}", std::process::id()))
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_is_noticed() {
        let directory = directory("replaced");
        let credentials = kubeconfig(&directory, ", certificate-authority: ca.crt");
        // Before the first reading nothing is known.
        assert!(!credentials.changed());
        let read = Kubeconfig::read_from(&credentials.kubeconfig).unwrap();
        let files = named_files(&credentials.kubeconfig, &read);
        assert_eq!(files.len(), 2, "{files:?}");
        *credentials.read.lock().unwrap() = files
            .into_iter()
            .map(|file| (file.clone(), age(&file)))
            .collect();
        assert!(!credentials.changed());
        let later = SystemTime::now() + Duration::from_secs(9);
        let authority = fs::File::options()
            .write(true)
            .open(directory.join("ca.crt"));
        authority.unwrap().set_modified(later).unwrap();
        assert!(credentials.changed());
        fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_proxy_is_refused_by_name() {
        let directory = directory("proxy");
        let credentials = kubeconfig(&directory, ", proxy-url: 'http://127.0.0.1:3128'");
        let error = credentials.client().await.err().expect("refused");
        assert!(error.to_string().contains("proxy-url"), "{error:#}");
        let plain = kubeconfig(&directory, "");
        assert!(plain.client().await.is_ok() && !plain.changed());
        fs::remove_dir_all(directory).unwrap();
    }
}
