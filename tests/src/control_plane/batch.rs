//! Many requests in one `curl`, over one connection: a process and a handshake for each would take most of the time.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::client::{Client, JSON, MERGE_PATCH, message};

/// Comes after each answer, on a line with the status. No JSON contains it.
const MARK: &str = "\u{1e}status ";

/// A request that waits to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    path: String,
    content: Option<(&'static str, Value)>,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Self {
        Self::of("GET", path, None)
    }

    pub fn post(path: impl Into<String>, object: Value) -> Self {
        Self::of("POST", path, Some((JSON, object)))
    }

    pub fn put(path: impl Into<String>, object: Value) -> Self {
        Self::of("PUT", path, Some((JSON, object)))
    }

    /// RFC 7386: `null` removes.
    pub fn merge(path: impl Into<String>, patch: Value) -> Self {
        Self::of("PATCH", path, Some((MERGE_PATCH, patch)))
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self::of("DELETE", path, None)
    }

    /// What it is about.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn of(
        method: &'static str,
        path: impl Into<String>,
        content: Option<(&'static str, Value)>,
    ) -> Self {
        Self {
            method,
            path: path.into(),
            content,
        }
    }
}

impl Client {
    /// Sends requests one after the other. Each has an answer of its own: the object, or the server's complaint.
    pub fn batch(&self, requests: &[Request]) -> Result<Vec<Result<Value, String>>> {
        let config: Vec<String> = requests
            .iter()
            .map(|request| self.section(request))
            .collect();
        let mut curl = Command::new("curl")
            .args(["--config", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("curl is missing: install it (Debian: apt-get install curl)")?;
        let mut input = curl.stdin.take().context("curl has no standard input")?;
        // curl reads all of it before it sends anything.
        input
            .write_all(config.join("next\n").as_bytes())
            .context("write to curl")?;
        drop(input);
        let output = curl.wait_with_output().context("wait for curl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = &*text;
        while let Some((answer, after)) = rest.split_once(MARK) {
            let (status, after) = after.split_once('\n').unwrap_or((after, ""));
            answers.push(if status.starts_with('2') {
                Ok(serde_json::from_str(answer).unwrap_or(Value::Null))
            } else {
                Err(format!("{status} {}", message(answer)))
            });
            rest = after;
        }
        ensure!(
            answers.len() == requests.len(),
            "{} of {} requests were answered: {}",
            answers.len(),
            requests.len(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(answers)
    }

    fn section(&self, request: &Request) -> String {
        let mut lines = vec![
            "silent".to_owned(),
            "show-error".to_owned(),
            "max-time = 30".to_owned(),
            format!("request = {}", request.method),
            format!(
                "cacert = {}",
                quoted(&self.certificate.display().to_string())
            ),
            format!(
                "header = {}",
                quoted(&format!("Authorization: Bearer {}", self.token))
            ),
            format!("write-out = {}", quoted(&format!("{MARK}%{{http_code}}\n"))),
            format!("url = {}", quoted(&format!("{}{}", self.url, request.path))),
        ];
        if let Some((kind, content)) = &request.content {
            lines.push(format!(
                "header = {}",
                quoted(&format!("Content-Type: {kind}"))
            ));
            lines.push(format!("data-binary = {}", quoted(&content.to_string())));
        }
        lines.join("\n") + "\n"
    }
}

/// A value of curl's config file.
fn quoted(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}
