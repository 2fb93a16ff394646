//! From what is desired and what is observed to what is to be done. Pure; carrying out all steps brings the observed to the desired.

use std::collections::BTreeMap;

/// What a deployment's containers should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desired {
    /// Created, not started.
    Prepared,
    Running,
}

/// What a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    Created,
    Running,
    Exited,
}

/// One thing to do to one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Remove(String),
    Create(String),
    Start(String),
}

/// The steps in order: first what must go, then what must come, then what must start, in start order.
#[must_use]
pub fn steps(desired: &BTreeMap<String, Desired>, observed: &BTreeMap<String, Observed>, start_order: &[String]) -> Vec<Step> {
    let (mut remove, mut create, mut start) = (Vec::new(), Vec::new(), Vec::new());
    for (name, state) in observed {
        match (desired.get(name), state) {
            (None, _) | (Some(_), Observed::Exited) | (Some(Desired::Prepared), Observed::Running) => {
                remove.push(Step::Remove(name.clone()))
            }
            (Some(Desired::Prepared), Observed::Created) | (Some(Desired::Running), Observed::Created | Observed::Running) => {}
        }
    }
    for name in start_order {
        let wanted = desired.get(name);
        let stays = match (wanted, observed.get(name)) {
            (Some(Desired::Prepared), Some(Observed::Created))
            | (Some(Desired::Running), Some(Observed::Created | Observed::Running)) => true,
            (Some(Desired::Prepared), Some(Observed::Running | Observed::Exited) | None)
            | (Some(Desired::Running), Some(Observed::Exited) | None)
            | (None, _) => false,
        };
        if wanted.is_some() && !stays {
            create.push(Step::Create(name.clone()));
        }
        if wanted == Some(&Desired::Running) && observed.get(name) != Some(&Observed::Running) {
            start.push(Step::Start(name.clone()));
        }
    }
    [remove, create, start].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESIRED: [Option<Desired>; 3] = [None, Some(Desired::Prepared), Some(Desired::Running)];
    const OBSERVED: [Option<Observed>; 4] = [None, Some(Observed::Created), Some(Observed::Running), Some(Observed::Exited)];

    /// A model of an engine: what the steps make of the observed.
    fn perform(steps: &[Step], mut observed: BTreeMap<String, Observed>) -> BTreeMap<String, Observed> {
        for step in steps {
            match step {
                Step::Remove(name) => assert!(observed.remove(name).is_some(), "removes what is not there"),
                Step::Create(name) => {
                    assert!(observed.insert(name.clone(), Observed::Created).is_none(), "creates what is there")
                }
                Step::Start(name) => assert_eq!(
                    observed.insert(name.clone(), Observed::Running),
                    Some(Observed::Created),
                    "starts what is not created"
                ),
            }
        }
        observed
    }

    #[test]
    fn every_pair_of_desired_and_observed_converges_in_one_pass_and_then_rests() {
        let name = "a".to_owned();
        for want in DESIRED {
            for have in OBSERVED {
                let desired: BTreeMap<_, _> = want.map(|d| (name.clone(), d)).into_iter().collect();
                let observed: BTreeMap<_, _> = have.map(|o| (name.clone(), o)).into_iter().collect();
                let order: Vec<String> = desired.keys().cloned().collect();
                let after = perform(&steps(&desired, &observed, &order), observed);
                let expected = want.map(|d| if d == Desired::Running { Observed::Running } else { Observed::Created });
                assert_eq!(after.get(&name).copied(), expected, "{want:?} {have:?}");
                assert_eq!(steps(&desired, &after, &order), [], "{want:?} {have:?}");
            }
        }
    }

    #[test]
    fn services_start_in_their_order() {
        let names = ["b".to_owned(), "a".to_owned()];
        let desired = names.iter().map(|n| (n.clone(), Desired::Running)).collect();
        let observed = names.iter().map(|n| (n.clone(), Observed::Created)).collect();
        assert_eq!(steps(&desired, &observed, &names), [Step::Start("b".into()), Step::Start("a".into())]);
    }
}
