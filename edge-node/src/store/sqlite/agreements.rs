//! Contracts that this node is a party of, or receives readings under.

use contracts::ids::ContractId;

use super::{AgreementRow, Error, Result, Sqlite, bytes, signed, unsigned};

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Row { table: "agreement", reason: e.to_string() })
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Row { table: "agreement", reason: e.to_string() })
}

/// Writes a contract with its state; compare-and-set on the version, which then rises by one. `false`: somebody else was faster.
pub(super) async fn put(store: &Sqlite, row: &AgreementRow) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO agreement (contract, envelope, state, version, wiped) VALUES (?1, ?2, ?3, ?4 + 1, ?5)
         ON CONFLICT (contract) DO UPDATE SET envelope = excluded.envelope, state = excluded.state, version = excluded.version, wiped = excluded.wiped
         WHERE agreement.version = ?4",
    )
    .bind(row.contract.as_bytes().as_slice())
    .bind(json(&row.envelope)?)
    .bind(json(&row.state)?)
    .bind(signed(row.version))
    .bind(row.wiped)
    .execute(&mut *store.writer.acquire().await?)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// All contracts, by id.
pub(super) async fn list(store: &Sqlite) -> Result<Vec<AgreementRow>> {
    let rows: Vec<(Vec<u8>, String, String, i64, bool)> =
        sqlx::query_as("SELECT contract, envelope, state, version, wiped FROM agreement ORDER BY contract")
            .fetch_all(&mut *store.reader.acquire().await?)
            .await?;
    rows.into_iter()
        .map(|(contract, envelope, state, version, wiped)| {
            Ok(AgreementRow {
                contract: ContractId::from_bytes(bytes("agreement", contract)?),
                envelope: read(&envelope)?,
                state: read(&state)?,
                version: unsigned("agreement", version)?,
                wiped,
            })
        })
        .collect()
}
