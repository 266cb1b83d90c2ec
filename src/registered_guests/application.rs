//! A request to register a guest, as the control socket receives it, and the decision whether to accept it.

use super::{Agreed, Registered};
use crate::config::{Settings, identity};
use crate::golem::destination::destination;
use crate::golem::manifest::{Access, Manifest};
use crate::golem::negotiation::{Credentials, Partner, Provider, Signed};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A guest to be registered. Files are given by their content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Its addresses, `address` or `address/length`.
    pub addresses: Vec<String>,
    /// The interface that its packets come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its manifest: JSON, or base64 of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// A signature over the base64 of the manifest, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The hash that was signed; `sha256` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_algorithm: Option<String>,
    /// The certificate of the signature: PEM, or base64 of PEM or DER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The requestor's signed node descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_descriptor: Option<String>,
    /// The requestor's node id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requestor: Option<String>,
}

/// An accepted application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The guest as it is to be registered.
    pub guest: Registered,
    /// What deserves a look.
    pub warnings: Vec<String>,
}

impl Application {
    /// Decides whether the provider's rules, as they are on disk now, accept it. Takes milliseconds.
    ///
    /// # Errors
    /// Everything that is wrong with it, or yagna's message if no rule accepts the manifest.
    pub fn decide_on(&self, settings: &Settings, now: Timestamp) -> Result<Taken, Vec<String>> {
        let addresses = identity(&self.name, &self.addresses, self.interface.as_deref())?;
        let mut warnings = Vec::new();
        let manifest = self.agree(settings, now, &mut warnings)?;
        let (name, interface) = (self.name.clone(), self.interface.clone());
        // Nobody needs to know it more exactly.
        let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Ok(Taken { guest: Registered { name, addresses, interface, since, manifest }, warnings })
    }

    fn agree(
        &self,
        settings: &Settings,
        now: Timestamp,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Agreed>, Vec<String>> {
        let credentials = self.credentials()?;
        let Some(text) = &self.manifest else {
            if credentials.signed.is_some() || credentials.partner.is_some() {
                return Err(vec!["a signature or a node descriptor requires a manifest, and there is none".to_owned()]);
            }
            return Ok(None);
        };
        let manifest = Manifest::read(text.as_bytes()).map_err(|error| vec![error.to_string()])?;
        warnings.extend(manifest.dates(now).map(|why| format!("{why}; yagna does not check that")));
        let rule = match settings.data_dir() {
            Some(dir) => {
                let provider = Provider::of(dir).map_err(|error| vec![error.to_string()])?;
                let rule = provider.negotiate(&manifest, &credentials, now);
                Some(rule.map_err(|rejection| [vec![rejection.text], rejection.notes].concat())?)
            }
            None => {
                let what = "without [golem].data_dir no provider's rules are checked: the manifest only narrows";
                warnings.push(format!("{what} what the configuration allows"));
                None
            }
        };
        if let Access::Urls(urls) = &manifest.access {
            let refused = urls.iter().filter_map(|url| destination(url).err().map(|why| (url, why)));
            warnings.extend(refused.map(|(url, why)| format!("{url} was agreed on, but opens nothing: {why}")));
        }
        Ok(Some(Agreed::on(manifest.access, rule)))
    }

    fn credentials(&self) -> Result<Credentials, Vec<String>> {
        let signed = match (&self.signature, &self.certificate) {
            (Some(signature), Some(certificate)) => Some(Signed {
                signature: signature.as_bytes().to_vec(),
                algorithm: self.signature_algorithm.clone().unwrap_or_else(|| "sha256".to_owned()),
                certificate: certificate.as_bytes().to_vec(),
            }),
            (None, None) => None,
            _ => return Err(vec!["signature and certificate must be given together".to_owned()]),
        };
        let partner = match (&self.node_descriptor, &self.requestor) {
            (Some(descriptor), Some(requestor)) => {
                Some(Partner { descriptor: descriptor.as_bytes().to_vec(), requestor: requestor.clone() })
            }
            (None, None) => None,
            _ => return Err(vec!["node descriptor and requestor must be given together".to_owned()]),
        };
        Ok(Credentials { signed, partner })
    }
}
