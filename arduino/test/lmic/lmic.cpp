// Stands in for the LMIC library: jobs, transactions and events in the documented order, no radio. On an Uno it only makes the sketch link.
// On the host (`ON_HOST`) it keeps virtual time, asserts that the sketch uses the library as documented, and prints what would be sent.
//
// Documented: LMIC_reset follows os_init; LMIC_setSession and LMIC_startJoining follow LMIC_reset; channels follow LMIC_setSession, which
// sets up the first three anew; nothing is handed in while OP_TXRXPEND is set; EV_TXCOMPLETE ends a transaction; onEvent may call the
// library; a confirmed frame keeps its counter over all its attempts.

#include <lmic.h>
#include <hal/hal.h>

#ifdef ON_HOST
#include <stdio.h>
#include <stdlib.h>
#define REQUIRE(condition, text) if (!(condition)) { printf("MISUSE %s\n", text); exit(3); }
#define REPORT(...) printf(__VA_ARGS__)
#else
#define REQUIRE(condition, text) if (!(condition)) { for (;;) {} }
#define REPORT(...)
#endif

struct lmic_t LMIC;

static bool is_initialised, is_reset, has_session;
static osjob_t *jobs;
static ostime_t now = 1;
static u2_t channels;
static osjob_t radio_job;
static u1_t pending[MAX_LEN_FRAME], pending_len, pending_port, pending_confirmed;

// What the network does, decided by the test's counters of transactions.
static u2_t transactions, joins;

static void print_hex(const char *name, xref2cu1_t bytes, u1_t length) {
  (void)name, (void)bytes;
  REPORT(" %s=", name);
  for (u1_t i = 0; i < length; i++) {
    REPORT("%02x", bytes[i]);
  }
}

extern "C" {

void os_init(void) {
  REQUIRE(!is_initialised, "os_init twice");
  REQUIRE(lmic_pins.nss != LMIC_UNUSED_PIN && lmic_pins.dio[0] != LMIC_UNUSED_PIN && lmic_pins.dio[1] != LMIC_UNUSED_PIN, "pins");
  is_initialised = true;
}

void LMIC_reset(void) {
  REQUIRE(is_initialised, "LMIC_reset before os_init");
  memset(&LMIC, 0, sizeof LMIC);
  is_reset = true;
  has_session = false;
}

static void begin_session(void) {
  LMIC.seqnoUp = LMIC.seqnoDn = 0;
  LMIC.dn2Dr = DR_SF12;
  LMIC.opmode &= ~OP_JOINING;
  channels = 7;
  has_session = true;
}

void LMIC_setSession(u4_t netid, devaddr_t devaddr, xref2u1_t nwkKey, xref2u1_t artKey) {
  REQUIRE(is_reset, "LMIC_setSession before LMIC_reset");
  begin_session();
  (void)netid, (void)devaddr;
  REPORT("session dev_addr=%08lx", (unsigned long)devaddr);
  print_hex("nwk_s_key", nwkKey, 16);
  print_hex("app_s_key", artKey, 16);
  REPORT("\n");
}

bit_t LMIC_setupChannel(u1_t channel, u4_t freq, u2_t drmap, s1_t band) {
  REQUIRE(has_session, "LMIC_setupChannel before LMIC_setSession");
  REQUIRE(channel < 16 && freq >= 863000000 && freq <= 870000000 && (drmap & 0x3f) == 0x3f, "a channel of EU868");
  REQUIRE(band == BAND_CENTI, "865 to 868.6 MHz have a duty cycle of 1 %");
  channels |= (u2_t)1 << channel;
  return 1;
}

void LMIC_setDrTxpow(dr_t dr, s1_t txpow) { REQUIRE(is_reset && dr <= DR_SF7 && txpow <= 14, "data rate and power of EU868"); }
void LMIC_setAdrMode(bit_t) { REQUIRE(is_reset, "LMIC_setAdrMode before LMIC_reset"); }
void LMIC_setLinkCheckMode(bit_t) { REQUIRE(has_session, "LMIC_setLinkCheckMode without a session"); }
void LMIC_setClockError(u2_t error) { REQUIRE(error > 0 && error <= MAX_CLOCK_ERROR / 250, "a clock error above 0.4 % is ignored"); }

u4_t LMIC_setSeqnoUp(u4_t seqno) {
  REQUIRE(has_session, "LMIC_setSeqnoUp before the session, which sets it to 0");
  const u4_t last = LMIC.seqnoUp;
  LMIC.seqnoUp = seqno;
  return last;
}

ostime_t os_getTime(void) { return now; }

u4_t os_rmsbf4(xref2cu1_t buffer) {
  return (u4_t)buffer[0] << 24 | (u4_t)buffer[1] << 16 | (u4_t)buffer[2] << 8 | buffer[3];
}

void os_clearCallback(osjob_t *job) {
  for (osjob_t **at = &jobs; *at != NULL; at = &(*at)->next) {
    if (*at == job) {
      *at = job->next;
      return;
    }
  }
}

void os_setTimedCallback(osjob_t *job, ostime_t time, osjobcb_t callback) {
  REQUIRE(is_initialised, "a job before os_init");
  os_clearCallback(job);
  job->deadline = time;
  job->func = callback;
  osjob_t **at = &jobs;
  while (*at != NULL && (*at)->deadline - time <= 0) {
    at = &(*at)->next;
  }
  job->next = *at;
  *at = job;
}

void os_setCallback(osjob_t *job, osjobcb_t callback) { os_setTimedCallback(job, now, callback); }

void os_runloop_once(void) {
  osjob_t *job = jobs;
  if (job == NULL) {
    return;
  }
  if (job->deadline - now > 0) {
    now = job->deadline;
  }
  jobs = job->next;
  job->func(job);
}

static void receive(u1_t port, u2_t value) {
  LMIC.seqnoDn++;
  LMIC.dataBeg = 9;
  LMIC.dataLen = 2;
  LMIC.frame[8] = port;
  LMIC.frame[9] = value >> 8;
  LMIC.frame[10] = (u1_t)value;
  LMIC.txrxFlags |= TXRX_PORT | TXRX_DNW1;
}

// After RX2. A confirmed frame is acknowledged by turns; now and then a downlink comes along: 45 s, then one that is out of range.
static void complete(osjob_t *) {
  LMIC.opmode &= ~(OP_TXRXPEND | OP_TXDATA);
  LMIC.txrxFlags = TXRX_NOPORT;
  LMIC.dataBeg = LMIC.dataLen = 0;
  if (pending_confirmed) {
    const bool is_acknowledged = transactions / 16 % 2 == 1;
    LMIC.txrxFlags = is_acknowledged ? TXRX_ACK : TXRX_NACK;
    LMIC.seqnoDn += is_acknowledged;
  } else if (transactions % 40 == 5) {
    LMIC.txrxFlags = 0;
    receive(10, transactions % 80 == 5 ? 45 : 1);
  }
  onEvent(EV_TXCOMPLETE);
}

static void transmit(osjob_t *) {
  onEvent(EV_TXSTART);
  transactions++;
  REPORT("uplink t=%ld f_cnt=%lu f_cnt_down=%lu port=%u confirmed=%u", (long)(now / OSTICKS_PER_SEC), (unsigned long)LMIC.seqnoUp,
         (unsigned long)LMIC.seqnoDn, pending_port, pending_confirmed);
  print_hex("payload", pending, pending_len);
  REPORT(" channels=%04x\n", channels);
  LMIC.seqnoUp++;
  // Eight attempts of a confirmed frame take 43 s at least.
  os_setTimedCallback(&radio_job, now + sec2osticks(pending_confirmed ? 43 : 3), complete);
}

lmic_tx_error_t LMIC_setTxData2(u1_t port, xref2u1_t data, u1_t dlen, u1_t confirmed) {
  REQUIRE(has_session, "data without a session");
  REQUIRE(!(LMIC.opmode & OP_TXRXPEND), "data during a transaction");
  REQUIRE(port >= 1 && port <= 223 && dlen <= 51, "a port and length that fit every data rate");
  // Refused now and then, as when a network's settings make the frame too long.
  if (LMIC.seqnoUp % 50 == 49) {
    LMIC.seqnoUp++;
    REPORT("refused\n");
    return LMIC_ERROR_TX_NOT_FEASIBLE;
  }
  memcpy(pending, data, dlen);
  pending_len = dlen;
  pending_port = port;
  pending_confirmed = confirmed;
  LMIC.opmode |= OP_TXDATA | OP_TXRXPEND;
  os_setTimedCallback(&radio_job, now + ms2osticks(20), transmit);
  return LMIC_ERROR_SUCCESS;
}

static void join(osjob_t *) {
  u1_t join_eui[8], dev_eui[8], key[16];
  os_getArtEui(join_eui);
  os_getDevEui(dev_eui);
  os_getDevKey(key);
  REPORT("join");
  print_hex("join_eui", join_eui, 8);
  print_hex("dev_eui", dev_eui, 8);
  print_hex("key", key, 16);
  REPORT("\n");
  if (++joins < 3) {
    os_setTimedCallback(&radio_job, now + sec2osticks(20), join);
    onEvent(EV_JOIN_TXCOMPLETE);
    return;
  }
  begin_session();
  channels = 0xff; // from the accept
  onEvent(EV_JOINED);
}

bit_t LMIC_startJoining(void) {
  REQUIRE(is_reset && !has_session, "LMIC_startJoining before LMIC_reset");
  LMIC.opmode |= OP_JOINING;
  onEvent(EV_JOINING);
  os_setTimedCallback(&radio_job, now + sec2osticks(1), join);
  return 1;
}

} // extern "C"
