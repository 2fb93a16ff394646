//! What the insurer said that it heard, judged as anybody would: whatever happened to an honest node, nothing convicts it.

use contracts::account::audit::{self, Terms};
use contracts::account::{Account, Receipt};
use contracts::envelope::{Envelope, Statement as _};
use contracts::time::{Millis, WallTime};
use edge_node::insurance::accounts;

use crate::machine::Machine;
use crate::world::World;

impl World {
    /// All statements of both parties before the judge, long after.
    pub(crate) async fn check_books(&self) {
        let mut statements: Vec<Envelope> = Vec::new();
        for machine in Machine::EDGES {
            let Some(running) = self.machines[&machine].node_running() else { continue };
            match accounts::statements(&running.core, self.group(), WallTime(0), u32::MAX).await {
                Ok(said) => statements.extend(said),
                Err(error) => self.checker.violate(format!("{} cannot say what it heard: {error}", machine.name())),
            }
        }
        let contract = &self.deal.contract;
        let terms = Terms {
            group: self.group(),
            members: vec![contract.customer.node, contract.provider.node],
            store: contract.readings_to,
            patience: Millis::ZERO,
        };
        for conviction in audit::convict(&terms, &statements, WallTime(u64::MAX)) {
            self.checker.violate(format!("an honest node is convicted: {conviction:?}"));
        }
        let own = self.node_id(Machine::Patras);
        let accounts = statements.iter().filter_map(|it| it.verify::<Account>().ok()).map(|it| it.statement);
        let mut accounts: Vec<Account> = accounts.filter(|account| account.node == own).collect();
        accounts.sort_by_key(|account| account.number);
        accounts.dedup();
        let heard: usize = accounts.iter().map(|account| account.heard.len()).sum();
        let receipts = statements.iter().filter(|it| it.payload_type == Receipt::TYPE).count();
        self.checker.log(format!("the insurer heard {heard} frames, in {} accounts; {receipts} receipts", accounts.len()));
    }
}
