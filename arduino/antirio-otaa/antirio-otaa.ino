// A LoRaWAN mote that is activated over the air (OTAA): Arduino Uno, SX1276 shield, MCCI LoRaWAN LMIC library, EU868.
// How to flash it, and which key goes where: docs/arduino.md.

#include <lmic.h>
#include <hal/hal.h>
#include <SPI.h>

#include "mote.h"
#include "keys.h"

// LMIC asks for these when it joins. EUIs are least significant byte first, the key is as it is written.
void os_getArtEui(u1_t *buffer) { read_hex_reversed(buffer, JOIN_EUI, 8); }
void os_getDevEui(u1_t *buffer) { read_hex_reversed(buffer, DEV_EUI, 8); }
void os_getDevKey(u1_t *buffer) { read_hex(buffer, APP_KEY, 16); }

static void send(osjob_t *) {
  if (LMIC.opmode & (OP_TXRXPEND | OP_JOINING)) {
    // The next try is set when this one is complete, or when the mote has joined.
    return;
  }
  send_reading();
}

static void joined() {
  // Channels, RX1 delay and RX2 came with the join accept. The link check stays on: after 64 uplinks without a downlink the mote asks for
  // one, and joins again if none comes for a long time. ADR stays on: the network may choose the data rate.
  Serial.println(F("joined"));
  os_setCallback(&send_job, send);
}

// Called by LMIC. Printing takes time: never between EV_TXSTART and EV_TXCOMPLETE.
void onEvent(ev_t event) {
  if (event == EV_JOINED) {
    joined();
  } else if (event == EV_TXCOMPLETE) {
    complete_uplink();
  } else if (event == EV_JOIN_TXCOMPLETE) {
    // LMIC tries again by itself, later and more slowly each time.
    Serial.println(F("no join accept"));
  }
}

void setup() {
  Serial.begin(115200);
  begin_sensors();
  os_init();
  LMIC_reset();
  LMIC_setClockError((u2_t)((u4_t)MAX_CLOCK_ERROR * CLOCK_ERROR_PERMILLE / 1000));
  LMIC_startJoining();
}

// Nothing else here: a `delay` would miss receive windows.
void loop() { os_runloop_once(); }
