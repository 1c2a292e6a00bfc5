//! Where the API server is, for an agent that has a service account and no kubeconfig of its own.

use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;
use serde::Serialize;

use super::Refused;

/// Where addresses of the API server come from.
///
/// kubelet tells pods the ClusterIP of the Service `kubernetes`, which without kube-proxy nobody serves until the
/// agent does. So that address is the last one tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServer {
    /// The operator's word: no other is tried.
    pub given: Option<ServerAddress>,
    /// Kubeconfig files whose `server` is tried, where they are.
    pub kubeconfigs: Vec<PathBuf>,
    /// Directory that outlives this node's reboot; addresses that the cluster named last are kept there.
    pub state: PathBuf,
}

/// `https://HOST[:PORT]`, nothing else: our token goes to nobody whose name is not proven.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct ServerAddress(String);

impl ServerAddress {
    /// As the API client takes it.
    pub fn uri(&self) -> Uri {
        // Parsed once already.
        self.0.parse().unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerAddress {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let text = text.trim().trim_end_matches('/');
        let url = if text.contains("://") {
            text.to_owned()
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            format!("https://[{text}]")
        } else {
            format!("https://{text}")
        };
        let refused = || {
            Refused(format!(
                "{text:?} is no address of an API server; expected HOST, HOST:PORT or https://HOST:PORT"
            ))
        };
        let uri: Uri = url.parse().map_err(|_| refused())?;
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let plain = uri.scheme_str() == Some("https") && matches!(path, "" | "/");
        let authority = uri.authority().ok_or_else(refused)?;
        // The parser lets digits through that are no port.
        let port = authority.as_str().strip_prefix(authority.host());
        let numbered = port.is_some_and(|port| {
            let number = port.strip_prefix(':').map(str::parse::<u16>);
            port.is_empty() || matches!(number, Some(Ok(1..)))
        });
        if !plain || !numbered || authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(refused());
        }
        Ok(Self(format!("https://{authority}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_or_urls() {
        let parse = |text: &str| text.parse::<ServerAddress>().map(|address| address.0);
        for (text, url) in [
            ("10.0.0.1", "https://10.0.0.1"),
            (
                "api.example.internal:6443",
                "https://api.example.internal:6443",
            ),
            ("https://10.0.0.1:6443/", "https://10.0.0.1:6443"),
            ("[fd00::1]:6443", "https://[fd00::1]:6443"),
            ("fd00::1", "https://[fd00::1]"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(url), "{text}");
        }
        for wrong in [
            "",
            "http://10.0.0.1",
            "https://a/b",
            "https://user@host",
            "a b",
            "host:",
            "host:99999",
            "https://",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
