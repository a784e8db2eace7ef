//! systemd units, as far as they are looked at here.

/// The directives of a unit, in their order: section, name and value.
#[derive(Clone, Debug)]
pub struct Unit(Vec<(String, String, String)>);

impl Unit {
    /// Reads a unit that continues no line on the next.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut section = String::new();
        let mut directives = Vec::new();
        for line in
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                name.clone_into(&mut section);
            } else if let Some((name, value)) = line.split_once('=') {
                directives.push((section.clone(), name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        Self(directives)
    }

    /// Every value of a directive of `[Service]`.
    pub fn service<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.services().filter(move |(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Every directive of `[Service]`.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter(|(section, ..)| section == "Service").map(|(_, name, value)| (&**name, &**value))
    }

    /// Directives that keep a daemon from opening paths for its callers: those by which systemd, in one version or
    /// another, gives the service a mount namespace of its own (systemd.exec(5)), and the one that takes openat2 away.
    #[must_use]
    pub fn against_paths(&self) -> Vec<&str> {
        const NAMES: [&str; 21] = [
            "BindPaths",
            "BindReadOnlyPaths",
            "DynamicUser",
            "ExecPaths",
            "ExtensionDirectories",
            "ExtensionImages",
            "IPCNamespacePath",
            "InaccessiblePaths",
            "LogNamespace",
            "MountAPIVFS",
            "MountFlags",
            "MountImages",
            "NetworkNamespacePath",
            "NoExecPaths",
            "ProcSubset",
            "ReadOnlyPaths",
            "ReadWritePaths",
            "RestrictSUIDSGID",
            "RootDirectory",
            "RootImage",
            "TemporaryFileSystem",
        ];
        let hinders =
            |name: &str| NAMES.contains(&name) || name.starts_with("Protect") || name.starts_with("Private");
        self.services().map(|(name, _)| name).filter(|name| hinders(name)).collect()
    }
}
