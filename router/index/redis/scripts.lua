-- Server-side scripts of the shared index (layout.py has the table of keys). Each runs atomically; KEYS[1] is the
-- pool's head, and every other key shares its hash tag. Hashes are 8-byte strings throughout: a Lua number holds no
-- integer above 2^53. Every script answers an array whose first element says how it went.
--
-- Out of memory: Redis refuses a command that may grow (HSET, SET ...) only as a script's *first* write. A script that
-- stores blocks begins with such a command, so it fails as a whole; one that only frees, renews a lease, or claims (and
-- so forgets what a restarted engine held) begins with a command that never grows and always succeeds.

--- prelude
local HEAD = KEYS[1]
local P = string.sub(HEAD, 1, -2)
local VERSION = '2'
local MAX_SLOTS = 4096
local call, sub, byte, char = redis.call, string.sub, string.byte, string.char
local unpack = unpack or table.unpack

local function text(number) return string.format('%.0f', number) end

local function now_ms()
  local t = call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function publish(record, cap)
  local n = call('HINCRBY', HEAD, 'n', 1)
  call('XADD', P .. 't', 'MAXLEN', '~', cap, text(n) .. '-0', 'd', record)
end

local function incarnation(id)
  local value = call('HGET', P .. 'i', id)
  if not value then return nil end
  return string.match(value, '^(%d+) (%d+) (.*)$')
end

-- The bitmap `value` with the slot's bit set; `value` may be false.
local function with(value, at, mask)
  if not value then value = '' end
  if #value < at then value = value .. string.rep('\0', at - #value) end
  return sub(value, 1, at - 1) .. char(bit.bor(byte(value, at), mask)) .. sub(value, at + 1)
end

-- The bitmap without the slot's bit, trailing zero bytes cut; '' when nothing is left.
local function without(value, at, mask)
  if #value < at then return value end
  value = sub(value, 1, at - 1) .. char(bit.band(byte(value, at), 255 - mask)) .. sub(value, at + 1)
  local last = #value
  while last > 0 and byte(value, last) == 0 do last = last - 1 end
  return sub(value, 1, last)
end

local function place(slot)
  return math.floor(slot / 8) + 1, 2 ^ (slot % 8)
end

local function set_bits(keys, slot)
  local at, mask = place(slot)
  local solo = with(false, at, mask)
  local values = call('MGET', unpack(keys))
  local pairs_, n = {}, 0
  for i = 1, #keys do
    local value = values[i]
    if value ~= solo then
      pairs_[n + 1] = keys[i]
      pairs_[n + 2] = value and with(value, at, mask) or solo
      n = n + 2
    end
  end
  if n > 0 then call('MSET', unpack(pairs_)) end
end

local function clear_bits(keys, slot)
  local at, mask = place(slot)
  local solo = with(false, at, mask)
  local values = call('MGET', unpack(keys))
  local dead, pairs_, d, n = {}, {}, 0, 0
  for i = 1, #keys do
    local value = values[i]
    if value then
      local rest = value == solo and '' or without(value, at, mask)
      if rest == '' then
        d = d + 1
        dead[d] = keys[i]
      elseif rest ~= value then
        pairs_[n + 1] = keys[i]
        pairs_[n + 2] = rest
        n = n + 2
      end
    end
  end
  if d > 0 then call('DEL', unpack(dead)) end
  if n > 0 then call('MSET', unpack(pairs_)) end
end

-- From here on no lookup names the slot; its blocks wait for the sweep.
local function retire(slot)
  call('HDEL', P .. 'q', slot)
  call('SADD', P .. 'w', slot)
end

--- claim
-- ARGV: pool name, generation for a new pool, replica id, epoch ('' = a new incarnation, newer than any before),
-- writer (so that a first claim that is repeated, or runs late, supersedes only others), meta, lease ms, load,
-- stream cap, quarantine ms, why what was known of it is forgotten (types.Cleared)
-- -> OK epoch slot | FENCED epoch | VERSION found | NOSLOT
local version = call('HGET', HEAD, 'v')
if version and version ~= VERSION then return {'VERSION', version} end
local id = ARGV[3]
local epoch, old, writer = incarnation(id)
local mine = ARGV[4]
if mine == '' and writer == ARGV[5] then
  mine = epoch
elseif mine == '' then
  local fresh = now_ms()
  if epoch and tonumber(epoch) >= fresh then fresh = tonumber(epoch) + 1 end
  mine = text(fresh)
elseif epoch and tonumber(epoch) > tonumber(mine) then
  return {'FENCED', epoch}
end
local rested = call('ZRANGEBYSCORE', P .. 'f', '-inf', now_ms() - tonumber(ARGV[10]), 'LIMIT', 0, 1)
local slot = rested[1]
if not slot then
  slot = tonumber(call('HGET', HEAD, 'slots') or '0')
  if slot >= MAX_SLOTS then return {'NOSLOT'} end
end
call('HDEL', P .. 'x', '')
if not version then
  call('HSET', HEAD, 'v', VERSION, 'pool', ARGV[1], 'gen', ARGV[2])
end
call('HSET', P .. 'i', id, mine .. ' ' .. slot .. ' ' .. ARGV[5])
call('HSET', P .. 'm', id, ARGV[6])
call('HSET', P .. 'q', slot, '0')
call('SET', P .. 'l' .. id, ARGV[8], 'PX', ARGV[7])
if rested[1] then
  call('ZREM', P .. 'f', slot)
else
  call('HINCRBY', HEAD, 'slots', 1)
end
if old then retire(old) end
slot = tonumber(slot)
publish(char(2, slot % 256, math.floor(slot / 256), tonumber(ARGV[11])) .. id, ARGV[9])
return {'OK', mine, slot}

--- apply
-- ARGV: replica id, epoch, sequence number, stream cap, DELTA record
-- -> OK | DUP (applied before) | GAP last (Redis lost deltas) | FENCED epoch | UNKNOWN
local epoch, slot = incarnation(ARGV[1])
if not epoch then return {'UNKNOWN'} end
if epoch ~= ARGV[2] then return {'FENCED', epoch} end
local record = ARGV[5]
slot = tonumber(slot)
if byte(record, 2) + 256 * byte(record, 3) ~= slot then return {'UNKNOWN'} end
local last = tonumber(call('HGET', P .. 'q', slot) or '0')
local seq = tonumber(ARGV[3])
if seq <= last then return {'DUP'} end
if seq ~= last + 1 then return {'GAP', text(last)} end
local at, size = 8, #record
if byte(record, at) and byte(record, at) % 2 == 1 then call('HSET', P .. 'q', slot, seq) end
while at <= size do
  local code, n = byte(record, at), byte(record, at + 1) + 256 * byte(record, at + 2)
  local tier = text(math.floor(code / 2))
  local space, reverse = P .. tier, P .. 'r' .. tier .. text(slot)
  local keys, members = {}, {}
  at = at + 3
  for i = 1, n do
    local hash = sub(record, at, at + 7)
    members[i] = hash
    keys[i] = space .. hash
    at = at + 8
  end
  if code % 2 == 1 then
    if tier ~= '0' then call('HSET', HEAD, 't' .. tier, '1') end
    call('SADD', reverse, unpack(members))
    set_bits(keys, slot)
  else
    call('SREM', reverse, unpack(members))
    clear_bits(keys, slot)
  end
end
call('HSET', P .. 'q', slot, seq)
publish(record, ARGV[4])
return {'OK'}

--- renew
-- ARGV: replica id, epoch, lease ms, load
-- -> OK last-sequence-number slots-to-sweep | FENCED epoch | UNKNOWN
local epoch, slot = incarnation(ARGV[1])
if not epoch then return {'UNKNOWN'} end
if epoch ~= ARGV[2] then return {'FENCED', epoch} end
call('PEXPIRE', P .. 'l' .. ARGV[1], ARGV[3])
call('SET', P .. 'l' .. ARGV[1], ARGV[4], 'PX', ARGV[3])
return {'OK', call('HGET', P .. 'q', slot) or '-1', call('SCARD', P .. 'w'), slot}

--- retire
-- ARGV: stream cap, 'expired' (only when the lease ran out) or 'now', then replica id, epoch, ...
-- -> OK replicas-retired
local gone = 0
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local epoch, slot = incarnation(id)
  if epoch == ARGV[i + 1] and (ARGV[2] == 'now' or call('EXISTS', P .. 'l' .. id) == 0) then
    call('HDEL', P .. 'i', id)
    call('HDEL', P .. 'm', id)
    call('DEL', P .. 'l' .. id)
    retire(slot)
    slot = tonumber(slot)
    publish(char(3, slot % 256, math.floor(slot / 256)), ARGV[1])
    gone = gone + 1
  end
end
return {'OK', gone}

--- sweep
-- ARGV: sweeper id, lock ms, blocks at most
-- -> OK blocks-removed slots-left | BUSY
local owner = call('GET', P .. 'k')
if owner and owner ~= ARGV[1] then return {'BUSY'} end
local slot = call('SRANDMEMBER', P .. 'w')
if not slot then return {'OK', 0, 0} end
local room = tonumber(ARGV[3])
call('PEXPIRE', P .. 'k', ARGV[2])
call('SET', P .. 'k', ARGV[1], 'PX', ARGV[2])
for tier = 0, 2 do
  local reverse = P .. 'r' .. tier .. slot
  if room > 0 then
    local members = call('SPOP', reverse, room)
    if #members > 0 then
      room = room - #members
      local space = P .. tier
      for i = 1, #members do members[i] = space .. members[i] end
      clear_bits(members, tonumber(slot))
    end
  end
end
if room > 0 then
  call('SREM', P .. 'w', slot)
  call('ZADD', P .. 'f', now_ms(), slot)
end
return {'OK', tonumber(ARGV[3]) - room, call('SCARD', P .. 'w')}

--- roster
-- -> OK generation run-id stream-number tier1 tier2 slots-to-sweep, then id, "epoch slot writer", meta, load ('' = no lease) ...
--    | VERSION found
local head = call('HMGET', HEAD, 'v', 'gen', 'n', 't1', 't2')
if head[1] and head[1] ~= VERSION then return {'VERSION', head[1]} end
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local answer = {'OK', head[2] or '', run, head[3] or '0', head[4] or '', head[5] or '', call('SCARD', P .. 'w')}
local registry = call('HGETALL', P .. 'i')
if #registry > 0 then
  local ids, leases = {}, {}
  for i = 1, #registry, 2 do
    ids[#ids + 1] = registry[i]
    leases[#leases + 1] = P .. 'l' .. registry[i]
  end
  local metas = call('HMGET', P .. 'm', unpack(ids))
  local loads = call('MGET', unpack(leases))
  for i = 1, #ids do
    local at = #answer
    answer[at + 1], answer[at + 2] = ids[i], registry[2 * i]
    answer[at + 3], answer[at + 4] = metas[i] or '', loads[i] or ''
  end
end
return answer

--- scan
-- ARGV: reverse set, cursor, count  -> OK cursor packed-hashes
local page = call('SSCAN', ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return {'OK', page[1], table.concat(page[2])}

--- share
-- ARGV: router id, expiry ms, in-flight work ('' = leave)  -> OK, then the unexpired work of the other routers
local now = now_ms()
call('HDEL', P .. 'x', '')
if ARGV[3] == '' then
  call('HDEL', P .. 'x', ARGV[1])
  call('HDEL', P .. 'y', ARGV[1])
else
  call('HSET', P .. 'x', ARGV[1], ARGV[3])
  call('HSET', P .. 'y', ARGV[1], text(now + tonumber(ARGV[2])))
end
local answer = {'OK'}
local expiry = call('HGETALL', P .. 'y')
for i = 1, #expiry, 2 do
  if tonumber(expiry[i + 1]) <= now then
    call('HDEL', P .. 'x', expiry[i])
    call('HDEL', P .. 'y', expiry[i])
  elseif expiry[i] ~= ARGV[1] then
    answer[#answer + 1] = call('HGET', P .. 'x', expiry[i]) or ''
  end
end
return answer
