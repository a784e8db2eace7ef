//! Private content, and those who have its id only.

use damselfly_core::download::Learned;

use super::kit::{Lab, learned};
use super::presence::{holding, holdings};
use crate::machine::event::*;
use crate::machine::privacy::ELSEWHERE;

const OWN: &str = "https://registry/blob?tenant=1&sig=a";

fn at(url: &str) -> Register {
    let filtered_query_params = vec!["sig".to_owned()];
    Register {
        about: About { url: url.into(), filtered_query_params, ..About::default() },
        ..Register::default()
    }
}

fn private(pieces: u32) -> Learned {
    Learned { private: true, ..learned(pieces, "v1") }
}

fn refused(lab: &Lab, peer: &str) -> bool {
    lab.ending(peer) == Some(&Ending::Refused(ELSEWHERE.to_owned()))
}

/// A lab in which a host holds eight pieces of private content.
fn lab() -> Lab {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b", "c", "d"], &["x"]);
    lab.register_with("a/1", at(OWN), Some(private(8)));
    lab.origin("a/1", 0..8);
    lab.say("a/1", PeerMessage::Finished);
    lab
}

#[test]
fn only_its_own_url_leads_to_private_content() {
    let mut lab = lab();
    for (peer, url) in
        [("b/1", "https://registry/blob?tenant=1&sig=b"), ("c/1", "https://me:pw@registry:443/blob?tenant=1")]
    {
        lab.register(peer, at(url));
        assert_eq!(lab.parents(peer).unwrap(), ["a/1"], "{url}");
    }
    let others =
        ["https://evil/blob?tenant=1", "https://registry/blob?tenant=2", "http://registry/blob?tenant=1"];
    for (number, url) in others.into_iter().enumerate() {
        for host in ["d", "x"] {
            let peer = format!("{host}/{number}");
            lab.register(&peer, at(url));
            assert!(refused(&lab, &peer), "{url}");
            assert_eq!(lab.told(&peer), [], "{url}: not even what is known of it");
        }
    }
}

#[test]
fn whoever_came_before_the_content_was_private_is_refused_then() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b", "c"], &[]);
    lab.register("a/1", at(OWN));
    lab.register("b/1", at("https://evil/blob"));
    lab.register("c/1", at(OWN));
    assert!(lab.ending("b/1").is_none(), "nothing is known of the content yet");
    lab.learned("a/1", private(8));
    assert!(refused(&lab, "b/1") && lab.ending("c/1").is_none());
    let told = lab.told("b/1");
    assert!(!told.iter().any(|answer| matches!(answer, Answer::Facts { learned: Some(_), .. })), "{told:?}");
}

#[test]
fn private_content_of_another_url_does_not_enter_a_task() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", at("https://first/blob"), Some(learned(8, "v1")));
    lab.register_with("b/1", at("https://second/blob"), Some(private(8)));
    assert!(refused(&lab, "b/1") && lab.ending("a/1").is_none());
    // While nobody needs to keep a secret, one content may come from two mirrors.
    lab.register_with("b/2", at("https://second/blob"), Some(learned(8, "v1")));
    assert!(lab.ending("b/2").is_none());
}

#[test]
fn a_restarted_scheduler_learns_from_its_holder_where_private_content_comes_from() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b", "c"], &[]);
    lab.hello("a", 1, 1);
    let url = "https://REDACTED:REDACTED@registry/blob?tenant=REDACTED".to_owned();
    holdings(&mut lab, 1, vec![Holding { private: true, url, ..holding(8, &[]) }], true);
    lab.register("b/1", at("https://evil/blob?tenant=1"));
    assert!(refused(&lab, "b/1"));
    lab.register("c/1", at(OWN));
    assert_eq!(lab.parents("c/1").unwrap().len(), 1);
    lab.register("b/2", at("https://registry/blob?tenant=2"));
    assert!(refused(&lab, "b/2"), "from then on the whole URL counts");
}
