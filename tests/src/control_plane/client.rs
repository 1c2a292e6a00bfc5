//! A small API client for tests: one `curl` per request.
//!
//! Deliberately not the client library the agent uses, so that both cannot share a misunderstanding.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

pub(super) const JSON: &str = "application/json";
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Talks to the API server as one user.
pub struct Client {
    pub(super) url: String,
    pub(super) certificate: PathBuf,
    pub(super) token: String,
    /// Resource lists by API version, as the server gave them.
    resources: Mutex<HashMap<String, Value>>,
}

/// What is sent with a request.
pub struct Body<'a> {
    content_type: &'a str,
    content: &'a Value,
}

/// Whether an applied object is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// Everything but the storing: admission, defaulting, validation.
    DryRun,
    Store,
}

impl Client {
    pub(super) fn new(url: String, certificate: PathBuf, token: String) -> Self {
        Self {
            url,
            certificate,
            token,
            resources: Mutex::default(),
        }
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)
    }

    /// Creates `object`, found by its kind, namespace and name. Returns it as stored.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let (collection, _) = self.paths(object)?;
        self.post(&collection, object)
    }

    /// Replaces an object of that kind, namespace and name.
    pub fn update(&self, object: &Value) -> Result<Value> {
        let (_, path) = self.paths(object)?;
        self.request(
            "PUT",
            &path,
            Some(Body {
                content_type: JSON,
                content: object,
            }),
        )
    }

    /// Applies `object` on the server's side (`kubectl apply --server-side`).
    pub fn apply(&self, object: &Value, mode: Apply) -> Result<Value> {
        let (_, path) = self.paths(object)?;
        let dry_run = if mode == Apply::DryRun {
            "&dryRun=All"
        } else {
            ""
        };
        let path = format!("{path}?fieldManager=tests&fieldValidation=Strict{dry_run}");
        self.request(
            "PATCH",
            &path,
            Some(Body {
                content_type: APPLY_PATCH,
                content: object,
            }),
        )
    }

    /// Merges `patch` into the object at `path` (RFC 7386: `null` removes).
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.request(
            "PATCH",
            path,
            Some(Body {
                content_type: MERGE_PATCH,
                content: patch,
            }),
        )
    }

    pub fn delete(&self, path: &str) -> Result<Value> {
        self.request("DELETE", path, None)
    }

    pub fn post(&self, path: &str, content: &Value) -> Result<Value> {
        self.request(
            "POST",
            path,
            Some(Body {
                content_type: JSON,
                content,
            }),
        )
    }

    /// Sends one request; an answer that is not 2xx is an error with the server's message.
    pub fn request(&self, method: &str, path: &str, body: Option<Body<'_>>) -> Result<Value> {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "30",
                "--request",
                method,
                "--cacert",
            ])
            .arg(&self.certificate)
            .args(["--header", &format!("Authorization: Bearer {}", self.token)])
            .args(["--write-out", "\n%{http_code}"]);
        if let Some(body) = &body {
            command.args([
                "--header",
                &format!("Content-Type: {}", body.content_type),
                "--data-binary",
                "@-",
            ]);
        }
        command.arg(format!("{}{path}", self.url));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context("curl is missing: install it (Debian: apt-get install curl)")?;
        let mut input = child.stdin.take().context("curl has no standard input")?;
        if let Some(body) = body {
            input
                .write_all(body.content.to_string().as_bytes())
                .context("write to curl")?;
        }
        drop(input);
        let output = child.wait_with_output().context("wait for curl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (answer, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        if !output.status.success() {
            bail!(
                "{method} {path}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        if !status.starts_with('2') {
            bail!("{method} {path}: {status} {}", message(answer));
        }
        // `/readyz` answers in plain text.
        Ok(serde_json::from_str(answer).unwrap_or_else(|_| Value::String(answer.into())))
    }

    /// Paths of the object's collection and of the object.
    fn paths(&self, object: &Value) -> Result<(String, String)> {
        let text = |value: &Value, what| {
            value
                .as_str()
                .map(String::from)
                .with_context(|| format!("no {what}"))
        };
        let api_version = text(&object["apiVersion"], "apiVersion")?;
        let kind = text(&object["kind"], "kind")?;
        let name = text(&object["metadata"]["name"], "metadata.name")?;
        let root = if api_version.contains('/') {
            format!("/apis/{api_version}")
        } else {
            format!("/api/{api_version}")
        };
        let mut known = self
            .resources
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !known.contains_key(&api_version) {
            known.insert(api_version.clone(), self.get(&root)?);
        }
        let resources = known[&api_version]["resources"]
            .as_array()
            .into_iter()
            .flatten();
        let resource = resources
            .filter(|resource| resource["kind"] == *kind)
            .find(|resource| {
                resource["name"]
                    .as_str()
                    .is_some_and(|name| !name.contains('/'))
            })
            .with_context(|| format!("the API server has no {kind} in {api_version}"))?;
        let plural = text(&resource["name"], "resource name")?;
        let collection = if resource["namespaced"] == true {
            let namespace = object["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default");
            format!("{root}/namespaces/{namespace}/{plural}")
        } else {
            format!("{root}/{plural}")
        };
        let path = format!("{collection}/{name}");
        Ok((collection, path))
    }
}

/// The message of a Status object, or the text itself.
pub(super) fn message(answer: &str) -> String {
    let status: Option<Value> = serde_json::from_str(answer).ok();
    status
        .and_then(|status| status["message"].as_str().map(String::from))
        .unwrap_or_else(|| answer.into())
}
