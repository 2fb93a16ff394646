-- When a contract ends its devices go; without this every device of every contract is looked at.
CREATE INDEX contract_devices_by_contract ON contract_devices (contract);
