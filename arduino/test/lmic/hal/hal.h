// As documented in doc/HOWTO-Manually-Configure.md of https://github.com/mcci-catena/arduino-lmic.

#pragma once

#include <lmic.h>

struct HalConfiguration;

struct lmic_pinmap {
  uint8_t nss;
  uint8_t rxtx;
  uint8_t rst;
  uint8_t dio[3];
  uint8_t rxtx_rx_active;
  int8_t rssi_cal;
  uint32_t spi_freq;
  HalConfiguration *pConfig;
};

const uint8_t LMIC_UNUSED_PIN = 0xff;

extern const lmic_pinmap lmic_pins;
