//! What a container calls a path, and what its host calls it.
//!
//! A mapping is spelling and not permission: who may open the path is decided where it is opened. Whoever maps a path has
//! resolved the links in it first, in its own view (`docs/dfcache.md`, "Containers").

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Pairs of directories: one as it is called here, the same as the host calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathMapping(Vec<Pair>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    container: PathBuf,
    host: PathBuf,
}

/// A text that is no mapping.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MappingError {
    /// Not two paths.
    #[error("{0:?} is not CONTAINER:HOST, two absolute paths")]
    Pair(String),
    /// Not a path from the root.
    #[error("{0:?} is not an absolute path")]
    Relative(String),
    /// Where `..` leads depends on links.
    #[error("{0:?} contains ..; name the directory itself")]
    Upwards(String),
    /// Two answers to one question.
    #[error("{0:?} is mapped twice")]
    Twice(String),
}

impl PathMapping {
    /// Whether it maps nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the host calls `path`, by the longest of the container's directories that it lies in, component by component.
    /// `None` where it lies in none of them, is not absolute or contains `..`.
    #[must_use]
    pub fn to_host(&self, path: &Path) -> Option<PathBuf> {
        let path = plain(path).ok()?;
        let matching =
            self.0.iter().filter_map(|pair| Some((pair, path.strip_prefix(&pair.container).ok()?)));
        let (pair, rest) = matching.max_by_key(|(pair, _)| pair.container.components().count())?;
        // Joining nothing would add a slash.
        Some(if rest.as_os_str().is_empty() { pair.host.clone() } else { pair.host.join(rest) })
    }
}

/// An absolute path without slashes and dots that say nothing.
fn plain(path: &Path) -> Result<PathBuf, MappingError> {
    let shown = || path.display().to_string();
    if !path.is_absolute() {
        return Err(MappingError::Relative(shown()));
    }
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => return Err(MappingError::Upwards(shown())),
            Component::CurDir => {}
            component => plain.push(component),
        }
    }
    Ok(plain)
}

impl FromStr for PathMapping {
    type Err = MappingError;

    /// Reads `CONTAINER:HOST[,CONTAINER:HOST...]`; an empty text maps nothing. Paths with `:` or `,` cannot be written.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pairs: Vec<Pair> = Vec::new();
        for text in text.split(',').filter(|_| !text.is_empty()) {
            let (container, host) = match text.split_once(':') {
                Some((container, host)) if !host.contains(':') => (container, host),
                _ => return Err(MappingError::Pair(text.to_owned())),
            };
            let [container, host] = [container, host].map(|path| plain(OsStr::new(path).as_ref()));
            let (container, host) = (container?, host?);
            if pairs.iter().any(|pair| pair.container == container) {
                return Err(MappingError::Twice(container.display().to_string()));
            }
            pairs.push(Pair { container, host });
        }
        Ok(Self(pairs))
    }
}

impl fmt::Display for PathMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Pair { container, host }) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}:{}", container.display(), host.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn mapping(text: &str) -> PathMapping {
        text.parse().unwrap()
    }

    fn host(text: &str, path: &str) -> Option<PathBuf> {
        mapping(text).to_host(Path::new(path))
    }

    #[test]
    fn whole_components_count_and_the_longest_wins() {
        let text = "/data:/mnt/models,/data/tmp:/scratch,/:/rootfs";
        for (path, expected) in [
            ("/data/a/b", "/mnt/models/a/b"),
            ("/data", "/mnt/models"),
            ("/data/", "/mnt/models"),
            ("/data//a/./b/", "/mnt/models/a/b"),
            ("/data/tmp/x", "/scratch/x"),
            ("/data/tmpx", "/mnt/models/tmpx"),
            ("/database", "/rootfs/database"),
            ("/", "/rootfs"),
        ] {
            assert_eq!(host(text, path), Some(PathBuf::from(expected)), "{path}");
        }
        assert_eq!(host("/data:/mnt", "/database/x"), None);
        assert_eq!(host("/data:/mnt", "data/x"), None);
        assert_eq!(host("/data:/mnt", "/data/../etc/shadow"), None);
        assert_eq!(host("", "/data"), None);
        assert_eq!(host("/data:/", "/data/x"), Some(PathBuf::from("/x")));
    }

    #[test]
    fn a_trailing_slash_in_the_mapping_says_nothing() {
        assert_eq!(mapping("/data/:/mnt//models/"), mapping("/data:/mnt/models"));
    }

    #[test]
    fn what_is_no_mapping_is_refused_by_name() {
        for (text, expected) in [
            ("/data", "\"/data\" is not CONTAINER:HOST, two absolute paths"),
            ("/a:/b:/c", "\"/a:/b:/c\" is not CONTAINER:HOST, two absolute paths"),
            ("/a:/b,", "\"\" is not CONTAINER:HOST, two absolute paths"),
            ("data:/b", "\"data\" is not an absolute path"),
            ("/a:", "\"\" is not an absolute path"),
            ("/a:/b/../c", "\"/b/../c\" contains ..; name the directory itself"),
            ("/a:/b,/a/:/c", "\"/a\" is mapped twice"),
        ] {
            assert_eq!(text.parse::<PathMapping>().unwrap_err().to_string(), expected);
        }
    }

    fn path() -> impl Strategy<Value = String> {
        vec(select(vec!["a", "b", "ab", "c"]), 0..4).prop_map(|parts| format!("/{}", parts.join("/")))
    }

    proptest! {
        #[test]
        fn what_is_mapped_stays_beneath_a_host_directory_and_keeps_its_rest(
            pairs in vec((path(), path()), 1..5),
            asked in path(),
        ) {
            let text: Vec<_> = pairs.iter().map(|(container, host)| format!("{container}:{host}")).collect();
            let Ok(mapping) = text.join(",").parse::<PathMapping>() else { return Ok(()) };
            prop_assert_eq!(mapping.to_string().parse::<PathMapping>(), Ok(mapping.clone()));
            let asked = Path::new(&asked);
            let matching = pairs.iter().filter(|(container, _)| asked.starts_with(container));
            let longest = matching.max_by_key(|(container, _)| Path::new(container).components().count());
            let mapped = mapping.to_host(asked);
            prop_assert_eq!(mapped.is_some(), longest.is_some());
            let Some(((container, host), mapped)) = longest.zip(mapped) else { return Ok(()) };
            let rest = asked.strip_prefix(container).unwrap();
            prop_assert_eq!(mapped.strip_prefix(host).unwrap(), rest);
            prop_assert!(!mapped.components().any(|part| part == Component::ParentDir));
        }

        #[test]
        fn the_way_back_is_the_same_where_hosts_directories_do_not_overlap(
            rest in vec(select(vec!["a", "b", "data", "mnt"]), 0..4),
            directory in select(vec!["one", "two", "one/deeper"]),
        ) {
            let there = mapping("/one:/h/1,/two:/h/2,/one/deeper:/h/3");
            let back = mapping("/h/1:/one,/h/2:/two,/h/3:/one/deeper");
            let path = Path::new("/").join(directory).join(rest.join("/"));
            let mapped = there.to_host(&path).unwrap();
            prop_assert_eq!(back.to_host(&mapped), Some(plain(&path).unwrap()));
        }

        #[test]
        fn slashes_and_dots_that_say_nothing_change_nothing(parts in vec(select(vec!["a", "b", ".", ""]), 0..6)) {
            let path = format!("/data/{}", parts.join("/"));
            let plain: Vec<_> = parts.iter().filter(|part| !matches!(**part, "." | "")).copied().collect();
            let expected = Path::new("/mnt").join(plain.join("/"));
            prop_assert_eq!(host("/data:/mnt", &path), Some(super::plain(&expected).unwrap()));
        }
    }
}
