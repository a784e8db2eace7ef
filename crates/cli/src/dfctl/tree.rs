//! A tree drawn from paths.

use damselfly_api::damselfly::v1::ActorStatus;

/// One node and what hangs below it.
#[derive(Debug, Default)]
struct Node {
    name: String,
    state: String,
    children: Vec<Node>,
}

impl Node {
    /// The node at `path` below this one, made with all before it.
    fn at(&mut self, path: &str) -> &mut Node {
        path.split('/').filter(|name| !name.is_empty()).fold(self, |node, name| {
            let index = node.children.iter().position(|child| child.name == name).unwrap_or_else(|| {
                node.children.push(Node { name: name.to_owned(), ..Node::default() });
                node.children.len() - 1
            });
            &mut node.children[index]
        })
    }

    fn draw(&self, indent: &str, text: &mut String) {
        for (index, child) in self.children.iter().enumerate() {
            let last = index + 1 == self.children.len();
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            child.line(&format!("{indent}{branch}"), text);
            child.draw(&format!("{indent}{below}"), text);
        }
    }

    fn line(&self, before: &str, text: &mut String) {
        let state = if self.state.is_empty() { String::new() } else { format!(" · {}", self.state) };
        text.push_str(&format!("{before}{}{state}\n", self.name));
    }
}

/// Draws actors as the tree that their paths make, in the order they came.
pub(super) fn draw(actors: &[ActorStatus]) -> String {
    let mut above = Node::default();
    for actor in actors {
        above.at(&actor.path).state.clone_from(&actor.state);
    }
    let mut text = String::new();
    for root in &above.children {
        root.line("", &mut text);
        root.draw("", &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree() {
        let actors = [
            ("daemon", "serving"),
            ("daemon/tasks", "1 live"),
            ("daemon/tasks/task 0a1b", "fetching"),
            ("daemon/tasks/task 0a1b/fetch 3", ""),
            // Its parent was not listed: drawn all the same.
            ("daemon/connections/10.0.0.1:4005", "idle"),
        ]
        .map(|(path, state)| ActorStatus { path: path.to_owned(), state: state.to_owned() });
        let expected = "\
daemon · serving
├─ tasks · 1 live
│  └─ task 0a1b · fetching
│     └─ fetch 3
└─ connections
   └─ 10.0.0.1:4005 · idle
";
        assert_eq!(draw(&actors), expected);
        assert_eq!(draw(&[]), "");
    }
}
