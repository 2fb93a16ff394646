// What both sketches share: pins, sensors, payload, keys as text, one uplink after the other. The same file lies in both sketch folders, because the Arduino IDE
// compiles one folder; `cargo xtask test` fails if they differ.

#pragma once

// How the shield is wired. Dragino LoRa Shield v1.x (docs/arduino.md lists others).
const lmic_pinmap lmic_pins = {
    .nss = 10,
    .rxtx = LMIC_UNUSED_PIN,
    .rst = 9,
    .dio = {2, 6, 7},
    .rxtx_rx_active = 0,
    .rssi_cal = 0,
    .spi_freq = 1000000,
    .pConfig = nullptr,
};

// A TMP36 (10 mV per degree, 500 mV at 0 degrees Celsius) and a contact to ground. A0, A3 and A4 are left to shields that use them.
static const uint8_t TEMPERATURE_PIN = A1;
static const uint8_t CONTACT_PIN = A2;

// Seconds between two uplinks, until a downlink says otherwise.
static const uint16_t INTERVAL_S = 60;
static const uint16_t INTERVAL_S_MIN = 30;
static const uint16_t INTERVAL_S_MAX = 3600;
// Every so many uplinks one asks for an acknowledgement; 0 is never. An acknowledgement costs the gateway air time, of which it has little.
static const uint8_t CONFIRM_EVERY = 16;

static const uint8_t PAYLOAD_PORT = 1;
static const uint8_t INTERVAL_PORT = 10;

// The Uno's clock is a ceramic resonator, up to 0.5 % off; LMIC takes at most 0.4 % without a compile-time flag.
static const uint8_t CLOCK_ERROR_PERMILLE = 4;

static inline uint8_t hex_digit(char digit) {
  return digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10;
}

// Reads `bytes` bytes from hexadecimal text in flash, in the order in which they are written.
static inline void read_hex(uint8_t *to, const char *flash_text, uint8_t bytes) {
  for (uint8_t i = 0; i < bytes; i++) {
    const uint8_t high = hex_digit(pgm_read_byte(flash_text + 2 * i));
    to[i] = (high << 4) | hex_digit(pgm_read_byte(flash_text + 2 * i + 1));
  }
}

// The same from the last byte to the first: EUIs are least significant byte first in LMIC.
static inline void read_hex_reversed(uint8_t *to, const char *flash_text, uint8_t bytes) {
  for (uint8_t i = 0; i < bytes; i++) {
    read_hex(to + i, flash_text + 2 * (bytes - 1 - i), 1);
  }
}

static inline void begin_sensors() {
  pinMode(CONTACT_PIN, INPUT_PULLUP);
  // 1.1 V: a TMP36 then reads up to 60 degrees in steps of 0.1.
  analogReference(INTERNAL);
}

// Cayenne LPP: channel, type, value, most significant byte first.
static const uint8_t PAYLOAD_BYTES = 7;

static inline void read_payload(uint8_t *payload) {
  const int32_t millivolts = (int32_t)analogRead(TEMPERATURE_PIN) * 1100 / 1024;
  const int16_t tenths = (int16_t)(millivolts - 500);
  payload[0] = 1;
  payload[1] = 103; // temperature, 0.1 degrees Celsius, signed
  payload[2] = (uint8_t)((uint16_t)tenths >> 8);
  payload[3] = (uint8_t)tenths;
  payload[4] = 2;
  payload[5] = 0; // digital input
  payload[6] = digitalRead(CONTACT_PIN) == LOW ? 1 : 0;
}

// The interval that a downlink asks for: two bytes, most significant first, on INTERVAL_PORT. 0 if it is none.
static inline uint16_t requested_interval() {
  if (!(LMIC.txrxFlags & TXRX_PORT) || LMIC.dataLen != 2 || LMIC.frame[LMIC.dataBeg - 1] != INTERVAL_PORT) {
    return 0;
  }
  const uint16_t seconds = ((uint16_t)LMIC.frame[LMIC.dataBeg] << 8) | LMIC.frame[LMIC.dataBeg + 1];
  return seconds < INTERVAL_S_MIN || seconds > INTERVAL_S_MAX ? 0 : seconds;
}

// When the next uplink is, and what is sent. The sketch says what happens at that time.

static osjob_t send_job;
static uint16_t interval_s = INTERVAL_S;
static uint8_t unconfirmed = 0;

static void send(osjob_t *);

static inline void send_in(uint16_t seconds) {
  os_setTimedCallback(&send_job, os_getTime() + sec2osticks(seconds), send);
}

// Hands an uplink to LMIC, which waits by itself until the duty cycle of a channel allows it.
static inline void send_reading() {
  const bool confirmed = CONFIRM_EVERY != 0 && unconfirmed + 1 >= CONFIRM_EVERY;
  uint8_t payload[PAYLOAD_BYTES];
  read_payload(payload);
  if (LMIC_setTxData2(PAYLOAD_PORT, payload, PAYLOAD_BYTES, confirmed) == LMIC_ERROR_SUCCESS) {
    unconfirmed = confirmed ? 0 : unconfirmed + 1;
  } else {
    // Nothing completes what it did not take.
    send_in(interval_s);
  }
}

// An uplink and its windows are over (EV_TXCOMPLETE).
static inline void complete_uplink() {
  const uint16_t requested = requested_interval();
  if (requested != 0) {
    interval_s = requested;
  }
  Serial.print(LMIC.seqnoUp - 1);
  Serial.println(LMIC.txrxFlags & TXRX_ACK ? F(" acknowledged") : LMIC.txrxFlags & TXRX_NACK ? F(" not acknowledged") : F(" sent"));
  send_in(interval_s);
}
