// The interface of the MCCI LoRaWAN LMIC library, as far as the sketches use it, written from its documentation: README.md,
// doc/LMIC-v5.0.0.pdf and the declarations of src/lmic/lmic.h, src/lmic/oslmic.h and src/hal/hal.h of
// https://github.com/mcci-catena/arduino-lmic (versions 3 to 6). The library itself is not here; `lmic.cpp` stands in for it in tests.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u1_t;
typedef int8_t s1_t;
typedef uint16_t u2_t;
typedef int16_t s2_t;
typedef uint32_t u4_t;
typedef int32_t s4_t;
typedef u1_t bit_t;
typedef u1_t dr_t;
typedef u4_t devaddr_t;
typedef s4_t ostime_t;
typedef u1_t *xref2u1_t;
typedef const u1_t *xref2cu1_t;

// README.md: one tick is 16 microseconds by default.
#define OSTICKS_PER_SEC 62500
#define ms2osticks(ms) ((ostime_t)(((int64_t)(ms) * OSTICKS_PER_SEC) / 1000))
#define sec2osticks(sec) ((ostime_t)((int64_t)(sec) * OSTICKS_PER_SEC))

enum { MAX_CLOCK_ERROR = 65536 };
enum { MAX_LEN_FRAME = 64 };
// lmic.h says so for EU868 with legacy names of data rates.
enum { DR_SF12 = 0, DR_SF11, DR_SF10, DR_SF9, DR_SF8, DR_SF7, DR_SF7B, DR_FSK };
enum { BAND_MILLI = 0, BAND_CENTI = 1, BAND_DECI = 2, BAND_AUX = 3 };
#define DR_RANGE_MAP(drlo, drhi) (((u2_t)0xFFFF << (drlo)) & ((u2_t)0xFFFF >> (15 - (drhi))))

enum { OP_JOINING = 0x0004, OP_TXDATA = 0x0008, OP_POLL = 0x0010, OP_TXRXPEND = 0x0080 };
enum { TXRX_ACK = 0x80, TXRX_NACK = 0x40, TXRX_NOPORT = 0x20, TXRX_PORT = 0x10, TXRX_DNW2 = 0x02, TXRX_DNW1 = 0x01 };

typedef enum _ev_t {
  EV_SCAN_TIMEOUT = 1, EV_BEACON_FOUND, EV_BEACON_MISSED, EV_BEACON_TRACKED, EV_JOINING, EV_JOINED, EV_RFU1, EV_JOIN_FAILED,
  EV_REJOIN_FAILED, EV_TXCOMPLETE, EV_LOST_TSYNC, EV_RESET, EV_RXCOMPLETE, EV_LINK_DEAD, EV_LINK_ALIVE, EV_SCAN_FOUND, EV_TXSTART,
  EV_TXCANCELED, EV_RXSTART, EV_JOIN_TXCOMPLETE
} ev_t;

enum { LMIC_ERROR_SUCCESS = 0, LMIC_ERROR_TX_BUSY = -1, LMIC_ERROR_TX_TOO_LARGE = -2, LMIC_ERROR_TX_NOT_FEASIBLE = -3, LMIC_ERROR_TX_FAILED = -4 };
typedef int lmic_tx_error_t;

struct osjob_t;
typedef void(osjobcbfn_t)(struct osjob_t *);
typedef osjobcbfn_t *osjobcb_t;
typedef struct osjob_t {
  struct osjob_t *next;
  ostime_t deadline;
  osjobcb_t func;
} osjob_t;

// The members that clients read or set.
struct lmic_t {
  u4_t seqnoDn;
  u4_t seqnoUp;
  u2_t opmode;
  u2_t txrxFlags;
  u1_t dn2Dr;
  u1_t dataBeg;
  u1_t dataLen;
  u1_t frame[MAX_LEN_FRAME];
};

#ifdef __cplusplus
extern "C" {
#endif

extern struct lmic_t LMIC;

void os_init(void);
void os_runloop_once(void);
ostime_t os_getTime(void);
void os_setCallback(osjob_t *job, osjobcb_t callback);
void os_setTimedCallback(osjob_t *job, ostime_t time, osjobcb_t callback);
void os_clearCallback(osjob_t *job);
u4_t os_rmsbf4(xref2cu1_t buffer);

void LMIC_reset(void);
void LMIC_setSession(u4_t netid, devaddr_t devaddr, xref2u1_t nwkKey, xref2u1_t artKey);
bit_t LMIC_setupChannel(u1_t channel, u4_t freq, u2_t drmap, s1_t band);
void LMIC_setDrTxpow(dr_t dr, s1_t txpow);
void LMIC_setAdrMode(bit_t enabled);
void LMIC_setLinkCheckMode(bit_t enabled);
void LMIC_setClockError(u2_t error);
u4_t LMIC_setSeqnoUp(u4_t seqno);
bit_t LMIC_startJoining(void);
lmic_tx_error_t LMIC_setTxData2(u1_t port, xref2u1_t data, u1_t dlen, u1_t confirmed);

// By the client.
void os_getArtEui(xref2u1_t buffer);
void os_getDevEui(xref2u1_t buffer);
void os_getDevKey(xref2u1_t buffer);
void onEvent(ev_t event);

#ifdef __cplusplus
}
#endif
