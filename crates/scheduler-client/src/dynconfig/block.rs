//! What must not be downloaded or uploaded.

use damselfly_core::Kind;
use regex::RegexSet;
use serde::Deserialize;

/// The block list of one class of hosts. Any rule that matches blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockList {
    task_download: Rules,
    cache_download: Rules,
    cache_upload: Rules,
}

/// What is to be done with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch it to this host.
    Download,
    /// Import it from this host.
    Upload,
}

/// The task in question.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Empty when there is none.
    pub application: &'a str,
    /// Empty when there is none.
    pub url: &'a str,
    /// Empty when there is none.
    pub tag: &'a str,
    /// `None` where priorities do not count.
    pub priority: Option<i32>,
}

/// Why a task is blocked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("blocked by the cluster's configuration: its {what} is on the block list")]
pub struct Blocked {
    /// What of it matched: `application`, `url`, `tag` or `priority`.
    pub what: &'static str,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    applications: Vec<String>,
    urls: RegexSet,
    tags: Vec<String>,
    priorities: Vec<i32>,
}

impl BlockList {
    /// Whether the task may not be downloaded or uploaded, and why. Tasks that live in memory follow the rules of
    /// standard tasks, as they have the same URLs.
    ///
    /// # Errors
    /// What blocks it.
    pub fn check(&self, kind: Kind, action: Action, subject: &Subject<'_>) -> Result<(), Blocked> {
        let rules = match (kind, action) {
            (Kind::Standard | Kind::Cache, Action::Download) => &self.task_download,
            (Kind::Standard | Kind::Cache, Action::Upload) => return Ok(()),
            (Kind::PersistentCache, Action::Download) => &self.cache_download,
            (Kind::PersistentCache, Action::Upload) => &self.cache_upload,
        };
        match rules.matching(subject) {
            Some(what) => Err(Blocked { what }),
            None => Ok(()),
        }
    }
}

impl Rules {
    fn matching(&self, subject: &Subject<'_>) -> Option<&'static str> {
        let listed = |list: &[String], text: &str| !text.is_empty() && list.iter().any(|item| item == text);
        if listed(&self.applications, subject.application) {
            return Some("application");
        }
        if !subject.url.is_empty() && self.urls.is_match(subject.url) {
            return Some("url");
        }
        if listed(&self.tags, subject.tag) {
            return Some("tag");
        }
        subject.priority.filter(|priority| self.priorities.contains(priority)).map(|_| "priority")
    }
}

/// `clientConfig` as it stands in the file, or in the manager's JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawClientConfig {
    #[serde(alias = "blockList")]
    block_list: Option<RawBlockList>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawBlockList {
    task: Option<RawKind>,
    #[serde(alias = "persistentTask")]
    persistent_task: Option<RawKind>,
    #[serde(alias = "persistentCacheTask")]
    persistent_cache_task: Option<RawKind>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawKind {
    download: Option<RawRules>,
    upload: Option<RawRules>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRules {
    applications: Option<Vec<String>>,
    urls: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    priorities: Option<Vec<i32>>,
}

impl RawClientConfig {
    pub(crate) fn compile(self) -> Result<BlockList, String> {
        let raw = self.block_list.unwrap_or_default();
        let (task, cache) = (raw.task.unwrap_or_default(), raw.persistent_cache_task.unwrap_or_default());
        // Tasks in object stores do not exist here; their rules are checked all the same.
        let persistent = raw.persistent_task.unwrap_or_default();
        compile(persistent.download, "persistentTask.download")?;
        compile(persistent.upload, "persistentTask.upload")?;
        Ok(BlockList {
            task_download: compile(task.download, "task.download")?,
            cache_download: compile(cache.download, "persistentCacheTask.download")?,
            cache_upload: compile(cache.upload, "persistentCacheTask.upload")?,
        })
    }
}

fn compile(raw: Option<RawRules>, key: &str) -> Result<Rules, String> {
    let raw = raw.unwrap_or_default();
    let urls = RegexSet::new(raw.urls.unwrap_or_default()).map_err(|error| {
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default().trim().to_owned();
        format!("blockList.{key}.urls: expected regular expressions: {why}")
    })?;
    Ok(Rules {
        applications: raw.applications.unwrap_or_default(),
        urls,
        tags: raw.tags.unwrap_or_default(),
        priorities: raw.priorities.unwrap_or_default(),
    })
}
