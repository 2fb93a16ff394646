-- A witness that starts anew looks for the contracts that ended a short time ago.
CREATE INDEX contracts_ended ON contracts (json_extract(standing, '$.ended.at')) WHERE in_force = 0;
