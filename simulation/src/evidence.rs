//! What the nodes keep as evidence, judged after the run: nobody lied, so nobody may be convicted, whatever crashed.

use contracts::envelope::Envelope;
use edge_node::insurance::statements::{FILE, OLDER_FILE};
use peering::custody::audit::{self, Terms};

use crate::machine::Machine;
use crate::nodes::STATE;
use crate::world::{World, ttl};

impl World {
    /// Statements about custody that were kept; a conviction of anybody is a violation.
    pub(crate) fn judge_statements(&self) -> usize {
        let mut statements: Vec<Envelope> = Vec::new();
        for machine in Machine::EDGES {
            for file in [OLDER_FILE, FILE] {
                let text =
                    std::fs::read_to_string(self.machines[&machine].content.path().join(STATE).join(file)).unwrap_or_default();
                statements.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
            }
        }
        if statements.is_empty() {
            // Whoever holds was voted for: without this nothing would be judged.
            self.checker.violate("no statement was kept".to_owned());
        }
        let members = [Machine::Rio, Machine::Patras, Machine::Arbitrator].map(|machine| self.node_id(machine)).to_vec();
        let terms = Terms { group: self.group(), members, ttl: ttl(&self.script) };
        for conviction in audit::convict(&terms, &statements) {
            let shown = conviction.proof.map(|place| String::from_utf8_lossy(&statements[place].payload).into_owned());
            self.checker.violate(format!(
                "{:?} is proven of {} in {}: {shown:?}",
                conviction.offence, conviction.member, conviction.epoch
            ));
        }
        statements.len()
    }
}
