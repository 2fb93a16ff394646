//! Uplinks as the bridge hands them on; what a test wants otherwise it changes.

use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::WallTime;
use edge_node::readings::{Kind, Reception, Uplink};

/// Of an insured device, for the tenant.
pub fn uplink(group: GroupId, device: DevEui, session: SessionId, f_cnt: u32) -> Uplink {
    Uplink {
        event: EventId::new(device, session, f_cnt),
        group,
        device,
        dev_addr: DevAddr::from_u32(1),
        session,
        joined: None,
        f_cnt,
        f_port: Some(1),
        confirmed: false,
        frm_payload: "00".to_owned(),
        phy: "40".to_owned(),
        heard_at: WallTime(1_000),
        kind: Kind::Live,
        epoch: Epoch(1),
        deliver: true,
        rx: reception(),
        others: Vec::new(),
    }
}

pub fn reception() -> Reception {
    Reception {
        gateway: "aa555a0000000102".to_owned(),
        tmst: 7,
        frequency_hz: 868_100_000,
        data_rate: "SF7BW125".to_owned(),
        rssi_dbm: -80,
        snr_tenth_db: 70,
    }
}
