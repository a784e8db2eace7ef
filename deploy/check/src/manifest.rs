//! Kubernetes manifests, read as strictly as `kubectl apply --validate=strict` does.
//!
//! The types of the API are generated from its schema. They ignore fields they do not know and fill in required ones that
//! are missing, so an object is written out again: what is not the same then was not what the schema says.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, Pod, PodSpec, Service, Volume};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

/// Why a manifest is refused.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is no YAML.
    #[error("no YAML: {0}")]
    Yaml(String),
    /// An object of a kind that is not known here.
    #[error("unknown kind {kind:?} of API {api_version:?}")]
    Kind {
        /// Its `apiVersion`, if it has one.
        api_version: String,
        /// Its `kind`, if it has one.
        kind: String,
    },
    /// A value of the wrong type.
    #[error("{kind}: {why}")]
    Type {
        /// Of the object.
        kind: String,
        /// What serde says.
        why: serde_json::Error,
    },
    /// Fields that the schema does not have, and required ones that are missing.
    #[error("{kind}: {}", .differences.join(", "))]
    Schema {
        /// Of the object.
        kind: String,
        /// Each with its path.
        differences: Vec<String>,
    },
}

/// An object of the API.
#[derive(Clone, Debug)]
pub enum Object {
    /// `v1` `Namespace`.
    Namespace(Box<Namespace>),
    /// `v1` `ConfigMap`.
    ConfigMap(Box<ConfigMap>),
    /// `v1` `Service`.
    Service(Box<Service>),
    /// `v1` `Pod`.
    Pod(Box<Pod>),
    /// `apps/v1` `DaemonSet`.
    DaemonSet(Box<DaemonSet>),
    /// `apps/v1` `Deployment`.
    Deployment(Box<Deployment>),
}

impl Object {
    /// The pod that it is or makes.
    #[must_use]
    pub fn pod(&self) -> Option<&PodSpec> {
        match self {
            Self::Pod(pod) => pod.spec.as_ref(),
            Self::DaemonSet(set) => set.spec.as_ref()?.template.spec.as_ref(),
            Self::Deployment(set) => set.spec.as_ref()?.template.spec.as_ref(),
            Self::Namespace(_) | Self::ConfigMap(_) | Self::Service(_) => None,
        }
    }
}

/// Every container of a pod, those that run first included.
pub fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

/// What `container` has at `path` itself: the volume.
#[must_use]
pub fn volume_at<'a>(pod: &'a PodSpec, container: &Container, path: &str) -> Option<&'a Volume> {
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.mount_path == path)?;
    pod.volumes.iter().flatten().find(|volume| volume.name == mount.name)
}

/// Reads every object of a manifest.
///
/// # Errors
/// When the text is no YAML, or an object not what the schema of its kind says.
pub fn read(text: &str) -> Result<Vec<Object>, ManifestError> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|why| ManifestError::Yaml(why.to_string()))?;
    documents.into_iter().map(object).collect()
}

fn object(document: Value) -> Result<Object, ManifestError> {
    let text = |key: &str| document[key].as_str().unwrap_or_default();
    Ok(match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => Object::Namespace(strict(&document)?),
        ("v1", "ConfigMap") => Object::ConfigMap(strict(&document)?),
        ("v1", "Service") => Object::Service(strict(&document)?),
        ("v1", "Pod") => Object::Pod(strict(&document)?),
        ("apps/v1", "DaemonSet") => Object::DaemonSet(strict(&document)?),
        ("apps/v1", "Deployment") => Object::Deployment(strict(&document)?),
        (api_version, kind) => {
            return Err(ManifestError::Kind { api_version: api_version.to_owned(), kind: kind.to_owned() });
        }
    })
}

fn strict<T: Serialize + DeserializeOwned>(document: &Value) -> Result<Box<T>, ManifestError> {
    let kind = || document["kind"].as_str().unwrap_or_default().to_owned();
    let wrong = |why| ManifestError::Type { kind: kind(), why };
    let object: T = serde_json::from_value(document.clone()).map_err(wrong)?;
    let understood = serde_json::to_value(&object).map_err(wrong)?;
    let mut differences = Vec::new();
    compare("", document, &understood, &mut differences);
    if differences.is_empty() {
        Ok(Box::new(object))
    } else {
        Err(ManifestError::Schema { kind: kind(), differences })
    }
}

/// Notes where what was written and what was understood are not the same.
fn compare(path: &str, written: &Value, understood: &Value, differences: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match understood.get(key) {
                    Some(same) => compare(&path, value, same, differences),
                    None => differences.push(format!("{path} is no field, or has no value")),
                }
            }
            let missing = understood.keys().filter(|key| !written.contains_key(*key));
            differences.extend(missing.map(|key| format!("{path}.{key} is missing")));
        }
        (Value::Array(written), Value::Array(understood)) if written.len() == understood.len() => {
            for (index, (value, same)) in written.iter().zip(understood).enumerate() {
                compare(&format!("{path}[{index}]"), value, same, differences);
            }
        }
        _ if written == understood => {}
        _ => differences.push(format!("{path} is {written}, understood as {understood}")),
    }
}
