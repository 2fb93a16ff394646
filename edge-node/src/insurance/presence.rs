//! Says when a member of a group does not answer and when it does again: with a member missing, the next one that fails may leave nobody
//! with a majority (rule 9 of the handover protocol).

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::ids::{GroupId, NodeId};
use peering::custody::CustodyHandle;

use crate::timeline::{Event, Timeline};

/// Between two looks. The transport's own alarm (two pings without an answer) is faster, and some links raise it all the time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Missing at so many looks in a row is worth a word.
const LOOKS: u32 = 3;

/// Since how many looks members are missing. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Absences(BTreeMap<NodeId, u32>);

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Missing(NodeId),
    Back(NodeId),
}

impl Absences {
    fn look(&mut self, missing: &[NodeId]) -> Vec<News> {
        let mut news: Vec<News> = self
            .0
            .iter()
            .filter(|(member, looks)| **looks >= LOOKS && !missing.contains(member))
            .map(|(member, _)| News::Back(*member))
            .collect();
        self.0.retain(|member, _| missing.contains(member));
        for member in missing {
            let looks = self.0.entry(*member).or_default();
            *looks = looks.saturating_add(1);
            if *looks == LOOKS {
                news.push(News::Missing(*member));
            }
        }
        news
    }
}

/// Looks at one group for ever.
pub async fn run(custody: CustodyHandle, timeline: Timeline, group: GroupId) {
    let mut absences = Absences::default();
    loop {
        let missing = custody.subscribe(group).map(|view| view.borrow().missing.clone()).unwrap_or_default();
        for news in absences.look(&missing) {
            let what = match news {
                News::Missing(member) => format!("member {member} of {group} does not answer"),
                News::Back(member) => format!("member {member} of {group} answers again"),
            };
            timeline.push(Event::Alarm { what });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 32]);
    const B: NodeId = NodeId::from_bytes([2; 32]);

    #[test]
    fn a_member_is_told_once_as_missing_and_once_as_back() {
        let mut absences = Absences::default();
        let looks: [(&[NodeId], &[News]); 8] = [
            (&[A], &[]),
            (&[A], &[]),
            (&[A, B], &[News::Missing(A)]),
            (&[A, B], &[]),
            (&[A], &[]),
            (&[], &[News::Back(A)]),
            (&[], &[]),
            (&[A], &[]),
        ];
        for (n, (missing, expected)) in looks.into_iter().enumerate() {
            assert_eq!(absences.look(missing), expected, "look {n}");
        }
    }
}
