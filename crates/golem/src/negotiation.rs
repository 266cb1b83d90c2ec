//! Decides whether this provider would accept this job, by yagna's three rules, in its order and its words. One
//! accepting rule is enough.

use super::descriptor::{Descriptor, DescriptorError, Outbound as Leave, Permissions};
use super::manifest::{Access, Manifest};
use super::rules::{CertRule, Hosts, Mode, Outbound, RulesError};
use super::x509::{ChainError, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::Path;
use url::Url;

/// The decision files of a provider.
#[derive(Clone, Debug)]
pub struct Provider {
    rules: Outbound,
    hosts: Hosts,
    store: Store,
}

/// What a demand contains beside the manifest.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A signature over the manifest, with the certificate to check it by.
    pub signed: Option<Signed>,
    /// A node descriptor, and the node that sent it.
    pub partner: Option<Partner>,
}

/// A signature over a manifest.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Base64.
    pub signature: Vec<u8>,
    /// `sha256` or `sha512`.
    pub algorithm: String,
    /// PEM, DER, or base64 of one of them; the signer's certificate last.
    pub certificate: Vec<u8>,
}

/// A node descriptor and who sent it.
#[derive(Clone, Debug)]
pub struct Partner {
    /// JSON.
    pub descriptor: Vec<u8>,
    /// The requestor's node id, `0x` and 40 digits.
    pub requestor: String,
}

/// The rule that accepted a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// It asks for nothing, so no rule is needed.
    NotRequested,
    /// `everyone`.
    Everyone,
    /// `audited-payload`, by the rule of this certificate.
    AuditedPayload(String),
    /// `partner`, by the rule of this certificate.
    Partner(String),
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Yagna's text.
    pub text: String,
    /// What yagna does not report: why a certificate is not trusted.
    pub notes: Vec<String>,
}

impl Rule {
    /// Returns its name.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Rule::NotRequested => "outbound is not requested",
            Rule::Everyone => "Everyone",
            Rule::AuditedPayload(_) => "Audited-Payload",
            Rule::Partner(_) => "Partner",
        }
    }

    /// Returns the mode that it grants by the current rules: none, if the rule no longer exists.
    pub fn mode(&self, rules: &Outbound) -> Mode {
        let of = |certificate: Option<&CertRule>| certificate.map_or(Mode::None, |rule| rule.mode);
        match self {
            _ if !rules.enabled => Mode::None,
            Rule::NotRequested => Mode::None,
            Rule::Everyone => rules.everyone,
            Rule::AuditedPayload(certificate) => of(rules.audited_payload.get(certificate)),
            Rule::Partner(certificate) => of(rules.partner.get(certificate)),
        }
    }
}

impl Provider {
    /// Reads the decision files of a data dir.
    ///
    /// # Errors
    /// [`RulesError`]; with broken files yagna would not start.
    pub fn of(data_dir: &Path) -> Result<Provider, RulesError> {
        Ok(Provider { rules: Outbound::of(data_dir)?, hosts: Hosts::of(data_dir)?, store: Store::of(data_dir)? })
    }

    /// Returns yagna's decision.
    ///
    /// # Errors
    /// [`Rejection`].
    pub fn negotiate(&self, manifest: &Manifest, credentials: &Credentials, now: Timestamp) -> Result<Rule, Rejection> {
        let access = &manifest.access;
        if *access == Access::None {
            return Ok(Rule::NotRequested);
        }
        if !self.rules.enabled {
            return Err(Rejection { text: "outbound is disabled".to_owned(), notes: Vec::new() });
        }
        let mut notes = Vec::new();
        let rules = [
            self.everyone(access),
            self.audited_payload(manifest, credentials.signed.as_ref(), now, &mut notes),
            self.partner(access, credentials.partner.as_ref(), now),
        ];
        let mut text = "Outbound rejected because: ".to_owned();
        for rule in rules {
            match rule {
                Ok(rule) => return Ok(rule),
                Err(why) => text.extend([why.as_str(), " ; "]),
            }
        }
        Err(Rejection { text, notes })
    }

    fn everyone(&self, access: &Access) -> Result<Rule, String> {
        self.mode(self.rules.everyone, access).map_err(|why| format!("Everyone {why}"))?;
        Ok(Rule::Everyone)
    }

    fn audited_payload(
        &self,
        manifest: &Manifest,
        signed: Option<&Signed>,
        now: Timestamp,
        notes: &mut Vec<String>,
    ) -> Result<Rule, String> {
        let signed = signed.ok_or("Audited-Payload rule requires manifest signature")?;
        let Signed { signature, algorithm, certificate } = signed;
        let verify = |text: &str| self.store.verify(certificate, signature, algorithm, text, now);
        // A demand contains the text in one line; in files it is often wrapped.
        let in_one_line: String = manifest.encoded.split_whitespace().collect();
        let chain = verify(&manifest.encoded).or_else(|error| match error {
            ChainError::Signature if in_one_line != manifest.encoded => verify(&in_one_line),
            error => Err(error),
        });
        let chain = chain.map_err(|error| {
            if let ChainError::Untrusted { why } = &error {
                notes.push(format!("the certificate of the signature: {why}"));
            }
            format!("Audited-Payload rule: {error}")
        })?;
        // The rule of the certificate nearest to the signer's applies.
        let Some((id, rule)) = chain.iter().find_map(|id| self.rules.audited_payload.get_key_value(id)) else {
            return Err(format!("Audited-Payload rule whole chain of cert_ids is not trusted: {chain:?}"));
        };
        self.mode(rule.mode, &manifest.access).map_err(|why| format!("Audited-Payload {why}"))?;
        Ok(Rule::AuditedPayload(id.clone()))
    }

    fn partner(&self, access: &Access, partner: Option<&Partner>, now: Timestamp) -> Result<Rule, String> {
        let Partner { descriptor, requestor } = partner.ok_or("Partner rule requires node descriptor")?;
        let descriptor = Descriptor::read(descriptor, now)
            .map_err(|error: DescriptorError| format!("Partner verification of node descriptor failed: {error}"))?;
        if descriptor.node_id != requestor.to_ascii_lowercase() {
            let cert = &descriptor.node_id;
            return Err(format!(
                "Partner rule nodes mismatch. requestor node_id: {requestor} but cert node_id: {cert}"
            ));
        }
        permitted(&descriptor.permissions, access).map_err(|why| format!("Partner {why}"))?;
        let chain = &descriptor.fingerprints;
        let Some((id, rule)) = chain.iter().find_map(|id| self.rules.partner.get_key_value(id)) else {
            return Err(format!("Partner rule whole chain of cert_ids is not trusted: {chain:?}"));
        };
        self.mode(rule.mode, access).map_err(|why| format!("Partner {why}"))?;
        Ok(Rule::Partner(id.clone()))
    }

    fn mode(&self, mode: Mode, access: &Access) -> Result<(), &'static str> {
        let listed = || match access {
            Access::Urls(urls) => urls.iter().filter_map(Url::host_str).all(|host| self.hosts.contains(host)),
            Access::None | Access::Unrestricted => false,
        };
        match mode {
            Mode::All => Ok(()),
            Mode::Whitelist if listed() => Ok(()),
            Mode::Whitelist => Err("rule didn't match whitelist"),
            Mode::None => Err("rule is disabled"),
        }
    }
}

/// Checks that the permissions of a node descriptor cover what is asked for.
fn permitted(permissions: &Permissions, access: &Access) -> Result<(), String> {
    let outbound = match permissions {
        Permissions::All(_) => return Ok(()),
        Permissions::Details(details) => details.outbound.as_ref().ok_or("No outbound permissions")?,
    };
    match (outbound, access) {
        (Leave::Unrestricted, _) | (Leave::Urls(_), Access::None) => Ok(()),
        (Leave::Urls(permitted), Access::Urls(urls)) => match urls.iter().find(|url| !permitted.contains(*url)) {
            None => Ok(()),
            Some(url) => Err(format!("Partner rule forbidden url requested: {url}")),
        },
        (Leave::Urls(_), Access::Unrestricted) => {
            Err("Manifest tries to use Unrestricted access, but certificate allows only for specific urls".to_owned())
        }
    }
}
