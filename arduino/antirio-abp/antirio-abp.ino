// A LoRaWAN mote that is activated by personalisation (ABP): Arduino Uno, SX1276 shield, MCCI LoRaWAN LMIC library, EU868.
// How to flash it, and which key goes where: docs/arduino.md.

#include <lmic.h>
#include <hal/hal.h>
#include <SPI.h>

#include "mote.h"
#include "keys.h"
#include "counters.h"

// Without it the mote begins at counter 0 after each power cut, and its entry in the configuration needs `"supports_reset": true`.
static const bool KEEP_COUNTERS = true;

static FrameCounters counters;

#ifndef DISABLE_JOIN
// LMIC asks for these when it joins; this mote does not.
void os_getArtEui(u1_t *) {}
void os_getDevEui(u1_t *) {}
void os_getDevKey(u1_t *) {}
#endif

static void keep_counters() {
  if (KEEP_COUNTERS) {
    counters.keep(LMIC.seqnoUp, LMIC.seqnoDn);
  }
}

static void send(osjob_t *) {
  if (LMIC.opmode & OP_TXRXPEND) {
    // The next try is set when this one is complete.
    return;
  }
  keep_counters();
  send_reading();
}

// Called by LMIC. Printing takes time: never between EV_TXSTART and EV_TXCOMPLETE.
void onEvent(ev_t event) {
  if (event == EV_TXCOMPLETE) {
    keep_counters();
    complete_uplink();
  }
}

static void set_session() {
  uint8_t address[4], network_key[16], application_key[16];
  read_hex(address, DEV_ADDR, sizeof address);
  read_hex(network_key, NWK_S_KEY, sizeof network_key);
  read_hex(application_key, APP_S_KEY, sizeof application_key);
  const uint32_t dev_addr = os_rmsbf4(address);
  // NetID 0x13 only names the network in LMIC's own state; frames do not carry it.
  LMIC_setSession(0x13, dev_addr, network_key, application_key);
  if (KEEP_COUNTERS) {
    counters.begin(dev_addr ^ os_rmsbf4(network_key) ^ os_rmsbf4(network_key + 8));
    LMIC_setSeqnoUp(counters.up());
    LMIC.seqnoDn = counters.down();
  }
}

// After LMIC_setSession, which sets up the first three channels only.
static void set_channels() {
  LMIC_setupChannel(0, 868100000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(1, 868300000, DR_RANGE_MAP(DR_SF12, DR_SF7B), BAND_CENTI);
  LMIC_setupChannel(2, 868500000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(3, 867100000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(4, 867300000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(5, 867500000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(6, 867700000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
  LMIC_setupChannel(7, 867900000, DR_RANGE_MAP(DR_SF12, DR_SF7), BAND_CENTI);
}

void setup() {
  Serial.begin(115200);
  begin_sensors();
  os_init();
  LMIC_reset();
  LMIC_setClockError((u2_t)((u4_t)MAX_CLOCK_ERROR * CLOCK_ERROR_PERMILLE / 1000));
  set_session();
  set_channels();
  // A mote by personalisation cannot join again if the link check fails; and its data rate is what is set here.
  LMIC_setLinkCheckMode(0);
  LMIC_setAdrMode(0);
  // The bridge's default for RX2 is the region's: 869.525 MHz, SF12. With `"rx2_data_rate": 3` in the configuration this is DR_SF9.
  LMIC.dn2Dr = DR_SF12;
  LMIC_setDrTxpow(DR_SF7, 14);
  send(&send_job);
}

// Nothing else here: a `delay` would miss receive windows.
void loop() { os_runloop_once(); }
