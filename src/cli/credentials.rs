//! What accompanies a manifest on the command line, the same for every command that accepts one: a signature with
//! its certificate, and a node descriptor with its requestor.

use super::Failure;
use super::bridge::Application;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use outgate::golem::negotiation::{self, Partner, Signed};
use outgate::golem::rules;
use std::path::{Path, PathBuf};

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Credentials {
    /// Signature over the base64 of the manifest, in base64
    #[arg(long, value_name = "FILE", requires = "certificate")]
    signature: Option<PathBuf>,
    /// The hash that was signed [default: sha256]
    #[arg(long, value_name = "NAME", requires = "signature")]
    signature_algorithm: Option<String>,
    /// Certificate of the signature: PEM, DER or base64 of either; the signer's certificate comes last
    #[arg(long, value_name = "FILE", requires = "signature")]
    certificate: Option<PathBuf>,
    /// The requestor's signed node descriptor
    #[arg(long, value_name = "FILE", requires = "requestor")]
    node_descriptor: Option<PathBuf>,
    /// The requestor's node id
    #[arg(long, value_name = "0x…", value_parser = node_id, requires = "node_descriptor")]
    requestor: Option<String>,
}

impl Credentials {
    /// Reads the files.
    pub(super) fn read(&self) -> Result<negotiation::Credentials, Failure> {
        let signed = match (&self.signature, &self.certificate) {
            (Some(signature), Some(certificate)) => Some(Signed {
                signature: read(signature)?,
                algorithm: self.signature_algorithm.clone().unwrap_or_else(|| "sha256".to_owned()),
                certificate: read(certificate)?,
            }),
            _ => None,
        };
        let partner = match (&self.node_descriptor, &self.requestor) {
            (Some(descriptor), Some(requestor)) => {
                Some(Partner { descriptor: read(descriptor)?, requestor: requestor.clone() })
            }
            _ => None,
        };
        Ok(negotiation::Credentials { signed, partner })
    }

    /// Reads the files into an application.
    pub(super) fn fill(&self, application: &mut Application) -> Result<(), Failure> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose().map(|bytes| bytes.map(as_text));
        application.signature = text(&self.signature)?;
        application.signature_algorithm.clone_from(&self.signature_algorithm);
        application.certificate = text(&self.certificate)?;
        application.node_descriptor = text(&self.node_descriptor)?;
        application.requestor.clone_from(&self.requestor);
        Ok(())
    }
}

/// Reads a manifest in the form that is sent to the daemon.
pub(super) fn read_manifest(path: &Path) -> Result<String, Failure> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|_| Failure::Failed(format!("{}: a manifest is JSON or base64 of it", path.display())))
}

/// Reads a file of at most 1 MiB.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    match rules::read(path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Failure::Failed(format!("{}: there is no such file", path.display()))),
        Err(error) => Err(Failure::Failed(error.to_string())),
    }
}

/// Returns it unchanged, or as base64 if it is not text.
fn as_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| STANDARD.encode(error.as_bytes()))
}

fn node_id(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 40);
    match digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        true => Ok(text.to_owned()),
        false => Err("a node id is 0x followed by 40 hexadecimal digits".to_owned()),
    }
}
