-- Every change of the ledger that must be atomic, in one script. ARGV: command, now ('' = this server's clock), arguments.
--
-- lastcall:epoch              hash   id, born, server: who serves it; n: how many began with these data; open_at: claims are given
--                                    from then on, without it nobody claims yet
-- lastcall:o:{output}         hash   one output; fields at the top of `fields` below
-- lastcall:doc:{source}       hash   output -> its document (opaque); not in the record, which stays small enough to be compact
-- lastcall:words:{source}     hash   id -> words that documents were packed with; a document begins with its words' id
-- lastcall:rate:{source}      hash   how long its outputs take: see `learn`
-- lastcall:flow:{source}      hash   {slot of `FLOW_SECONDS`}n, …b -> outputs and bytes archived then, of the last `FLOW_SLOTS`
-- lastcall:recent             list   the last `RECENT_KEPT` archived, newest first: when, bytes, output, key
-- lastcall:health:{source}    hash   what its slots were good for: see `health`
-- lastcall:turn               how often what is in time and what is too late had to be weighed: see `claim`
-- lastcall:owed:{source}      zset   output -> its latest start (`latest_start`): may be claimed now
-- lastcall:later:{source}     zset   output -> not_before: owed, waiting for its next try
-- lastcall:claimed:{source}   zset   output -> end of its lease; its cardinality is the number of slots in use
-- lastcall:open:{source}      zset   output -> deadline: everything not archived yet that may still be (owed, later, claimed)
-- lastcall:{held,lost,explained,empty}:{source}   zset   output -> deadline; explained is lost and acknowledged
-- lastcall:archived:{source}  zset   output -> when a listing last showed it; dropped once it no longer does
-- lastcall:probe:{source}     zset   output -> when to ask once more for a lost output that the vendor still lists
-- lastcall:count:{source}     number of receipts, as shown; lastcall:tally:{source} that of the count which goes on
-- lastcall:counting:{source}  number of the last count of the receipts: only what that count has not seen is added to it
-- lastcall:seen               when a worker or a beat last said that it lives, so when Redis was there
-- lastcall:truce              until when no lease ends, after Redis was away
-- lastcall:running:{source}    hash   job -> since when it was seen running, and when last
-- lastcall:ran:{source}        how many seconds jobs ran after they were first seen, the newest last
-- lastcall:looks:{source}      zset   "number job" -> when to ask for it, before the next listing
-- lastcall:busy:{source}       when something last ran or came
-- lastcall:pass               hash   source -> when its last complete pass began, in this epoch
-- lastcall:recovered          set    sources of which the bucket was read back; lastcall:recount: whose count is in doubt
-- lastcall:strays             hash   source -> the epoch in which objects without receipts were looked for
-- lastcall:told:{source}       hash   output -> the trouble that people were told of
-- lastcall:polling:{source}   token of the listing that goes on; lastcall:polled:{source} lives as long as none may begin
--
-- Fields of an output (one that is not there is 0 or ''): st state, dl deadline, sz size where the vendor says it, cr created,
-- rd ready at (archived_at - rd is the latency), at attempts, dn downloads, nb not_before, er last error, fe fence, wk worker, gn gone answers, g1 first of them,
-- ep the epoch's n when it was created, rs reason of a loss, ak acknowledged with this reason, rc receipt must be looked for before a download, ct the count
-- that has its receipt, as asserted while that count went on, ky key, pr probes, hi history.

local P = 'lastcall:'
local call = redis.call
local command = ARGV[1]
local now = tonumber(ARGV[2])
if not now then
  local t = call('TIME')
  now = tonumber(t[1]) + tonumber(t[2]) / 1000000
end
local a = {}
for i = 3, #ARGV do a[#a + 1] = ARGV[i] end

local function num(n) return string.format('%.6f', n) end
local function rec(id) return P .. 'o:' .. id end
local source_by_id = {}
local function source_of(id)
  local source = source_by_id[id] or string.match(id, '^([^/]+)/')
  source_by_id[id] = source
  return source
end
local function key(set, id) return P .. set .. ':' .. source_of(id) end
local function get(id, field) return call('HGET', rec(id), field) end

local WORDS_ID_BYTES = 6 -- as `_pack` writes it

-- Writes what a listing says of an output, and the words that its document was packed with.
local function describe(id, dl, doc, words, size)
  call('HSET', rec(id), 'dl', dl)
  if size ~= '' then call('HSET', rec(id), 'sz', size) else call('HDEL', rec(id), 'sz') end
  call('HSET', key('doc', id), id, doc)
  call('HSETNX', key('words', id), string.sub(doc, 1, WORDS_ID_BYTES), words)
end

local RECENT = 0.1 -- weight of the newest output in each mean
local LARGE_BYTES = 1048576 -- what is smaller measures the vendor's answers, not the line

-- Learns from an output that took SECONDS in its slot: n outputs seen, ss seconds of one; of large ones ln seen, lb bytes and
-- ls seconds of one, so lb / ls is the throughput of one slot.
local function learn(source, bytes, seconds)
  local rate = P .. 'rate:' .. source
  local function mean(seen, field, value)
    local before = tonumber(call('HGET', rate, field) or '0')
    call('HSET', rate, field, num(before + math.max(1 / seen, RECENT) * (value - before)))
  end
  mean(call('HINCRBY', rate, 'n', 1), 'ss', seconds)
  if bytes >= LARGE_BYTES then
    local seen = call('HINCRBY', rate, 'ln', 1)
    mean(seen, 'lb', bytes)
    mean(seen, 'ls', math.max(seconds, 0.001))
  end
end

local FLOW_SECONDS, FLOW_SLOTS = 600, 144 -- a day, as the board draws it
local RECENT_KEPT = 50

-- Remembers for the board what was archived when, and what was archived last.
local function remember(id, object, bytes)
  local flow, slot = P .. 'flow:' .. source_of(id), math.floor(now / FLOW_SECONDS)
  call('HINCRBY', flow, slot .. 'b', bytes)
  if call('HINCRBY', flow, slot .. 'n', 1) == 1 then
    for _, field in ipairs(call('HKEYS', flow)) do
      if tonumber(string.match(field, '%d+')) <= slot - FLOW_SLOTS then call('HDEL', flow, field) end
    end
  end
  call('LPUSH', P .. 'recent', string.format('%.0f %s %s %s', now, bytes, id, object))
  call('LTRIM', P .. 'recent', 0, RECENT_KEPT - 1)
end

-- How many seconds an output of SIZE ('' where nobody knows it) will take as far as one can tell; 0 while nothing was measured.
local rates = {}
local function expected(source, size)
  local rate = rates[source]
  if not rate then
    local ss, lb, ls = unpack(call('HMGET', P .. 'rate:' .. source, 'ss', 'lb', 'ls'))
    rate = { mean = tonumber(ss or '0'), a_byte = lb and tonumber(ls) / tonumber(lb) }
    rates[source] = rate
  end
  if size and rate.a_byte then return tonumber(size) * rate.a_byte end
  return rate.mean
end

-- The order of claims: when an output must be begun to be there by its deadline. Its score when it became claimable; each
-- listing scores anew, since rates change, and nothing else does: to score a whole backlog at each change is not worth it.
local function latest_start(id)
  local dl, size = unpack(call('HMGET', rec(id), 'dl', 'sz'))
  local seconds = expected(source_of(id), size)
  return seconds == 0 and dl or num(tonumber(dl) - seconds)
end

local function note(id, text)
  local line = string.gsub(string.sub(text, 1, 500), '%c', ' ')
  local history = (get(id, 'hi') or '') .. string.format('%.0f %s\n', now, line)
  if #history > 2000 then history = string.gsub(string.sub(history, -2000), '^[^\n]*\n', '') end
  call('HSET', rec(id), 'hi', history)
end

local function count(metric, label, by) call('HINCRBY', P .. 'm:' .. metric, label, by) end

-- Whether a state is one of `open`.
local function is_open(st) return st == 'owed' or st == 'claimed' end

-- Takes an output out of every index that its state put it into, save `open`.
local function unindex(id, st)
  if st == 'owed' then
    if call('ZREM', key('owed', id), id) == 0 then call('ZREM', key('later', id), id) end
  elseif st == 'claimed' then
    call('ZREM', key('claimed', id), id)
  elseif st == 'lost' then
    call('ZREM', key('lost', id), id); call('ZREM', key('explained', id), id)
    call('ZREM', key('probe', id), id); call('ZREM', key('claimed', id), id)
  elseif st then
    call('ZREM', key(st, id), id)
  end
end

-- The one way to change a state.
local function move(id, st, until_)
  local was, dl = unpack(call('HMGET', rec(id), 'st', 'dl'))
  unindex(id, was)
  if is_open(st) and not is_open(was) then call('ZADD', key('open', id), dl, id) end
  if is_open(was) and not is_open(st) then call('ZREM', key('open', id), id) end
  call('HSET', rec(id), 'st', st)
  if st ~= 'claimed' then call('HDEL', rec(id), 'fe', 'wk') end
  if st == 'owed' then
    local nb = until_ or 0
    if nb > 0 then call('HSET', rec(id), 'nb', num(nb)) else call('HDEL', rec(id), 'nb') end
    if nb > now then call('ZADD', key('later', id), num(nb), id) else call('ZADD', key('owed', id), latest_start(id), id) end
  elseif st == 'claimed' then
    call('ZADD', key('claimed', id), num(until_), id)
  elseif st == 'lost' then
    call('ZADD', key(call('HEXISTS', rec(id), 'ak') == 1 and 'explained' or 'lost', id), dl, id)
  elseif st == 'archived' then
    call('ZADD', key('archived', id), num(now), id)
  else
    call('ZADD', key(st, id), dl, id)
  end
end

-- Whether `fence` is the one under which `id` is held. A lost output is probed under a fence too.
local function owns(id, fence) return fence ~= '' and get(id, 'fe') == fence end

local function take_fence(id, worker)
  -- With the worker's name, since a Redis that came back a little older gives the same number a second time.
  local fence = call('HGET', P .. 'epoch', 'id') .. ':' .. call('INCR', P .. 'fence') .. ':' .. worker
  call('HSET', rec(id), 'fe', fence, 'wk', worker)
  return fence
end

-- Whether no lease may end: nobody could prolong any while Redis was away, so their holders get the time of one lease for it.
local function truce(lease)
  local seen = tonumber(call('GET', P .. 'seen') or now)
  if now - seen > lease / 2 then call('SET', P .. 'truce', num(now + lease)) end
  return tonumber(call('GET', P .. 'truce') or '0') > now
end

-- Ends a claim that nobody settled: the output is owed again at once, and the next attempt looks for what was left. True unless it
-- was a lost one, asked for once more.
local function end_claim(id, why)
  local st = get(id, 'st')
  if st == 'claimed' then
    note(id, why)
    call('HSET', rec(id), 'rc', '1')
    move(id, 'owed')
    return true
  end
  call('ZREM', key('claimed', id), id)
  if st then call('HDEL', rec(id), 'fe', 'wk') end
  return false
end

-- Leases that ended: their holders are dead.
local function expire_leases(source)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'claimed:' .. source, '-inf', num(now), 'LIMIT', 0, 100)) do
    local ended = end_claim(id, 'lease of ' .. (get(id, 'wk') or '?') .. ' ended; taken over')
    if ended then count('takeovers', source, 1) end
  end
end

-- What need not wait any longer may be claimed. In steps, so that a great many never make Redis stand still.
local function promote(source)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'later:' .. source, '-inf', num(now), 'LIMIT', 0, 1000)) do
    call('ZREM', P .. 'later:' .. source, id)
    call('ZADD', P .. 'owed:' .. source, latest_start(id), id)
  end
end

-- Whether a source is paused or hushed. That is over when its time is up.
local function stopped(source)
  for _, name in ipairs({ 'pause:' .. source, 'hush:' .. source }) do
    local until_ = call('HGET', P .. name, 'until')
    if until_ and tonumber(until_) > now then return true end
  end
  return false
end

local ALIVE_SECONDS = 15 -- since a worker last said so
local MOST_AT_ONCE = 1000 -- values of a call, since Lua unpacks no more than some 8,000

-- How many outputs the living workers can collect at once.
local function capacity()
  local workers, total = call('ZRANGEBYSCORE', P .. 'workers', num(now - ALIVE_SECONDS), '+inf'), 0
  for i = 1, #workers, MOST_AT_ONCE do
    for _, slots in ipairs(call('HMGET', P .. 'slots', unpack(workers, i, math.min(#workers, i + MOST_AT_ONCE - 1)))) do
      total = total + tonumber(slots or '0')
    end
  end
  return total
end

local OCCUPIED_SECONDS = 5 -- an attempt that fails sooner keeps nobody waiting
local MOST_IN_VAIN = 0.3 -- of the slots that a source is trusted with
local LONGEST_REST_SECONDS = 120

-- An attempt of a source has ended: archived, or its slot was held for so many seconds in vain. ok, bad: when that was last; lost: the
-- seconds of the last one in vain; vain: the mean of 0 and 1 over its attempts, the newest with weight RECENT.
local function attempted(source, archived, lost)
  local health = P .. 'health:' .. source
  local vain = tonumber(call('HGET', health, 'vain') or (archived and '0' or '1'))
  call('HSET', health, 'vain', num(vain + RECENT * ((archived and 0 or 1) - vain)), archived and 'ok' or 'bad', num(now))
  if not archived then call('HSET', health, 'lost', lost) end
end

-- Whether a source is trusted with any slot that is free; and until when it rests, nil when it does not, since it has lately kept
-- others waiting for nothing: each of the others gets as long.
local function health(source, sources)
  local ok, bad, lost, vain = unpack(call('HMGET', P .. 'health:' .. source, 'ok', 'bad', 'lost', 'vain'))
  ok, bad = tonumber(ok or '0'), tonumber(bad or '0')
  local rest = math.min(tonumber(lost or '0') * (sources - 1), LONGEST_REST_SECONDS)
  return ok > bad and tonumber(vain) < MOST_IN_VAIN, bad > ok and now < bad + rest and bad + rest or nil
end

-- How many outputs of each of [SOURCE SLOTS]… may be claimed now, of `most` that all workers can collect; and how many are held.
-- A source that archives has its own limit only. One that has archived nothing yet, or holds slots in vain, gets its share of all
-- slots, and while it rests only what is left if the others took all they may: a vendor that hangs or trickles never fills a worker.
-- What would be too late after the rest is not kept back while nobody else has anything for a slot that is free.
local function rooms(lease, most, ...)
  local limits, list, held = { ... }, {}, 0
  local leases_end = not truce(lease)
  local all_stopped = call('EXISTS', P .. 'pause:*') == 1 -- until somebody found the bucket well
  for i = 1, #limits, 2 do
    local one = { name = limits[i], limit = tonumber(limits[i + 1]) }
    if leases_end then expire_leases(one.name) end
    promote(one.name)
    one.held = call('ZCARD', P .. 'claimed:' .. one.name)
    held = held + one.held
    if not all_stopped and not stopped(one.name) then list[#list + 1] = one end
  end
  local share, wanted, waiting = math.max(1, math.floor(most / math.max(1, #list))), 0, false
  for _, one in ipairs(list) do
    one.trusted, one.rests_until = health(one.name, #list)
    local limit = (one.trusted or most == 0) and one.limit or math.min(one.limit, share)
    one.room = math.max(0, limit - one.held)
    if not one.rests_until then
      wanted = wanted + one.room
      waiting = waiting or (one.room > 0 and call('ZCARD', P .. 'owed:' .. one.name) > 0)
    end
  end
  local free = math.max(1, most - held) -- who asks has one; dead workers hold theirs until their leases end
  for _, one in ipairs(list) do
    if one.rests_until and most > 0 then
      local due = waiting and 0 or call('ZCOUNT', P .. 'owed:' .. one.name, '(' .. num(now), num(one.rests_until))
      one.room = math.min(one.room, math.max(free - wanted, due))
    end
  end
  return list, held
end

local function epoch_number() return call('HGET', P .. 'epoch', 'n') or '0' end

local function create(id, dl, doc, words, ready, size)
  call('HSET', rec(id), 'cr', string.format('%.0f', now), 'rd', ready, 'ep', epoch_number())
  describe(id, dl, doc, words, size)
end

-- Whether the present count has seen the receipt of an output.
local function counted(id, source) return get(id, 'ct') == (call('GET', P .. 'counting:' .. source) or '0') end

-- Counts a receipt, once in each count. What the ledger does not know is listed by the bucket alone, and only once. Gives whether it did.
local function count_receipt(id, source)
  local present = call('GET', P .. 'counting:' .. source) or '0'
  local st, ct = unpack(call('HMGET', rec(id), 'st', 'ct'))
  if ct == present then return false end
  call('INCR', P .. 'tally:' .. source)
  if st then call('HSET', rec(id), 'ct', present) end
  return true
end

local commands = {}

-- The process that serves these data: another one after each restart and each failover. '' where INFO is refused.
local function server()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
end

-- Whether the server that is here now has begun the epoch, as far as it can be told: who may not ask who serves has nothing to
-- doubt it by.
local function begun_here(present, begun_by) return begun_by and (present == '' or begun_by == present) end

-- Whether claims are given: not before the epoch is open, and not by a server that has not begun it.
local function claims_given()
  local open_at, begun_by = unpack(call('HMGET', P .. 'epoch', 'open_at', 'server'))
  return open_at and tonumber(open_at) <= now and begun_here(server(), begun_by)
end

-- The head of what a source owes, and of that what can still be there by its deadline; each {output, latest start}, {} for none.
local function heads(source)
  local owed = P .. 'owed:' .. source
  local head = call('ZRANGE', owed, 0, 0, 'WITHSCORES')
  if not head[1] or tonumber(head[2]) > now then return {}, head end
  return head, call('ZRANGEBYSCORE', owed, '(' .. num(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
end

local function sooner(a, b)
  return a[1] and (not b or tonumber(a[2]) < tonumber(b[2])) and a or b
end

local LATE_TURNS = 16 -- of so many claims one is for what is too late already,
local SOON_SECONDS = 900 -- while something else can be in time that must begin so soon

-- claim WORKER LEASE [SOURCE SLOTS]…: leases the most urgent output that may be claimed now: of all that wait, the one that must
-- begin first. What can hardly be in time any more comes before all that has time enough, and gets the first of `LATE_TURNS`
-- claims where something has not: with more to fetch than time, each late output makes the next one late, until all are. Gives {} when there is none, else {id, fence, document,
-- its words, field, value, …}.
function commands.claim(worker, lease, ...)
  if not claims_given() then return {} end
  local late, in_time, probe
  for _, one in ipairs((rooms(lease, capacity(), ...))) do
    local source = one.name
    if one.room > 0 then
      local too_late, saved = heads(source)
      late, in_time = sooner(too_late, late), sooner(saved, in_time)
      probe = probe or call('ZRANGEBYSCORE', P .. 'probe:' .. source, '-inf', num(now), 'LIMIT', 0, 1)[1]
    end
  end
  local best = late or in_time
  if late and in_time and tonumber(in_time[2]) <= now + SOON_SECONDS then
    if call('INCR', P .. 'turn') % LATE_TURNS ~= 1 then best = in_time end
  end
  best = best and best[1]
  local id = best or probe
  if not id then return {} end
  local fence
  if best then
    move(id, 'claimed', now + tonumber(lease))
    call('HINCRBY', rec(id), 'at', 1)
    if get(id, 'ep') ~= epoch_number() then call('HSET', rec(id), 'rc', '1') end
    fence = take_fence(id, worker)
  else
    call('ZREM', key('probe', id), id)
    call('HINCRBY', rec(id), 'pr', 1)
    call('ZADD', key('claimed', id), num(now + tonumber(lease)), id)
    fence = take_fence(id, worker)
  end
  local doc = call('HGET', key('doc', id), id)
  local reply = { id, fence, doc, call('HGET', key('words', id), string.sub(doc, 1, WORDS_ID_BYTES)) }
  for _, v in ipairs(call('HGETALL', rec(id))) do reply[#reply + 1] = v end
  return reply
end

-- hushed SOURCE: for how long nobody calls the source, as a negative number; 0 when it may be called.
function commands.hushed(source)
  local hush = tonumber(call('HGET', P .. 'hush:' .. source, 'until') or '0')
  return hush > now and num(now - hush) or '0'
end

-- spend ID FENCE DOWNLOADS: a download is about to be made; DOWNLOADS is its number where the vendor counts, '' elsewhere.
-- Gives its number, and for how long the source is hushed, see `hushed`: then nothing is counted and none may be made, save where
-- the vendor counts, since that one is written down already.
function commands.spend(id, fence, downloads)
  if not owns(id, fence) then return { -1, '0' } end
  local hushed = downloads == '' and commands.hushed(source_of(id)) or '0'
  if hushed ~= '0' then return { 0, hushed } end
  if downloads == '' then return { call('HINCRBY', rec(id), 'dn', 1), hushed } end
  call('HSET', rec(id), 'dn', downloads)
  return { tonumber(downloads), hushed }
end

-- Its receipt stands. True whoever says so; counted once. Gives 1 when this call counted it. When the ledger was lost while the receipt was written, or did not know the output when it was counted, nobody knows
-- whether the count saw it: count again.
local function settle(id, object, bytes, unproven, seconds, downloaded, found)
  local st, ready, as = unpack(call('HMGET', rec(id), 'st', 'rd', 'as'))
  local source = source_of(id)
  if downloaded == '1' then count('downloads', source .. '|ok', 1) end
  if not st or as or (found == '1' and not counted(id, source)) then call('SADD', P .. 'recount', source) end
  if not st or st == 'archived' then return 0 end
  note(id, 'archived')
  call('HSET', rec(id), 'ky', object, 'er', '')
  move(id, 'archived')
  local latency = math.max(0, now - tonumber(ready))
  for _, bound in ipairs({ '1', '5', '15', '60', '300', '900', '3600', '14400', '86400', '604800', '+Inf' }) do
    if bound == '+Inf' or latency <= tonumber(bound) then
      count('ready_to_archived', source .. '|' .. bound, 1)
      break
    end
  end
  call('HINCRBYFLOAT', P .. 'm:ready_to_archived_sum', source, num(latency))
  attempted(source, true)
  if seconds ~= '' then learn(source, tonumber(bytes), tonumber(seconds)) end
  if found ~= '1' and count_receipt(id, source) then call('INCR', P .. 'count:' .. source) end
  count('archived', source, 1)
  count('archived_bytes', source, bytes)
  remember(id, object, bytes)
  if unproven == '1' then count('unproven', source, 1) end
  return 1
end

-- archived ID KEY BYTES UNPROVEN SECONDS DOWNLOADED FOUND [WORKER LEASE [SOURCE SLOTS]…]: its receipt stands; it took so long (''
-- when that says nothing of the next one), and '1' a download; FOUND '1': it stood before. A WORKER takes the next one in the
-- same call. Gives {1 when this call counted it, what `claim` gives}.
function commands.archived(id, object, bytes, unproven, seconds, downloaded, found, ...)
  return { settle(id, object, bytes, unproven, seconds, downloaded, found), ... and commands.claim(...) or {} }
end

-- What each output takes stands above: to make the functions below takes Redis as long as to claim one.
if commands[command] then return commands[command](unpack(a)) end

local ASSERT_SECONDS = 2 -- in which whoever holds an output says so; keepers look for Redis every second while it is away

-- Begins an epoch with what the one before it left: another server has these data, and may have forgotten what its predecessor was
-- told last. What was owed before may be in somebody's hands or archived, so a claim has it looked for before a download; what
-- the bucket knows is read back, and the next pass is the first.
local function doubt()
  local open_at = call('HGET', P .. 'epoch', 'open_at')
  if open_at then call('HSET', P .. 'epoch', 'open_at', num(math.max(tonumber(open_at), now + ASSERT_SECONDS))) end
  call('DEL', P .. 'pass', P .. 'recovered')
end

-- begin ID: makes ID the epoch unless this server has begun one. Gives its id and its open_at ('' = nobody may claim yet).
function commands.begin(new)
  local present = server()
  if not begun_here(present, call('HGET', P .. 'epoch', 'server')) then
    if call('HEXISTS', P .. 'epoch', 'id') == 1 then doubt() end
    call('HSET', P .. 'epoch', 'id', new, 'born', num(now), 'server', present)
    call('HINCRBY', P .. 'epoch', 'n', 1)
  end
  return { call('HGET', P .. 'epoch', 'id'), call('HGET', P .. 'epoch', 'open_at') or '' }
end

-- open ID DELAY: claims are given DELAY seconds from now on, if ID still is the epoch. Gives 1 when this call did it.
function commands.open(id, delay)
  if call('HGET', P .. 'epoch', 'id') ~= id then return 0 end
  return call('HSETNX', P .. 'epoch', 'open_at', num(now + tonumber(delay)))
end

-- listed ID…: a listing shows these outputs. Gives the state of each, '' where it is new; of an archived one that is all there is to it.
function commands.listed(...)
  local states = {}
  for i, id in ipairs({ ... }) do
    states[i] = get(id, 'st') or ''
    if states[i] == 'archived' then call('ZADD', key('archived', id), num(now), id) end
  end
  return states
end

-- A listing shows this output. Gives the state it was in, '' when it is new.
local function owe(id, dl, doc, words, ready, size, offered, recheck)
  local st = get(id, 'st')
  if not st then
    create(id, dl, doc, words, ready, size)
    if recheck == '1' then call('HSET', rec(id), 'rc', '1') end
    move(id, 'owed')
    return ''
  end
  if st == 'archived' then
    call('ZADD', key('archived', id), num(now), id)
    return st
  end
  if get(id, 'dl') ~= dl or call('HGET', key('doc', id), id) ~= doc then
    describe(id, dl, doc, words, size)
    for _, set in ipairs({ 'open', 'held', 'lost', 'explained', 'empty' }) do call('ZADD', key(set, id), 'XX', dl, id) end
  end
  if st == 'owed' then call('ZADD', key('owed', id), 'XX', latest_start(id), id) end
  if st == 'empty' then
    note(id, 'the vendor offers a file now')
    move(id, 'owed')
  elseif st == 'lost' and offered == '1' and not call('ZSCORE', key('probe', id), id) and not get(id, 'fe') then
    -- Still listed after all: ask again, more and more rarely, without a word unless the bytes come back.
    local probes = tonumber(get(id, 'pr') or '0')
    call('ZADD', key('probe', id), num(now + math.min(30 * 2 ^ probes, 21600)), id)
  end
  return st
end

-- owe [ID DEADLINE DOC WORDS READY SIZE OFFERED RECHECK]…: a listing shows these outputs. Gives the state that each was in.
function commands.owe(...)
  local outputs, states = { ... }, {}
  for i = 1, #outputs, 8 do states[#states + 1] = owe(unpack(outputs, i, i + 7)) end
  return states
end

-- reclaim [ID DEADLINE DOC WORDS READY SIZE]…: the bucket has an object of each, and no receipt. What is not known is owed, and
-- looked for there; a lost one is asked for soon. What else is known stays as it is: a listing knows more than an object does.
-- Gives the state that each was in.
function commands.reclaim(...)
  local outputs, states = { ... }, {}
  for i = 1, #outputs, 6 do
    local st = get(outputs[i], 'st')
    if not st or st == 'lost' then
      local id, dl, doc, words, ready, size = unpack(outputs, i, i + 5)
      if st then dl, doc = get(id, 'dl'), call('HGET', key('doc', id), id) end
      owe(id, dl, doc, words, ready, size, '1', '1')
    end
    states[#states + 1] = st or ''
  end
  return states
end

-- note_empty ID DEADLINE DOC WORDS READY SIZE: the job finished and produced nothing.
function commands.note_empty(id, dl, doc, words, ready, size)
  local st = get(id, 'st')
  if st then return st end
  create(id, dl, doc, words, ready, size)
  move(id, 'empty')
  return ''
end

-- adopt ID DEADLINE DOC WORDS READY SIZE KEY: a receipt stands already. It is counted already, as long as no pass was completed;
-- later it may be one that a Redis which came back older has forgotten, so the receipts are counted again.
function commands.adopt(id, dl, doc, words, ready, size, object)
  if get(id, 'st') then return 0 end
  local source = string.match(id, '^([^/]+)/')
  if call('HEXISTS', P .. 'pass', source) == 1 then call('SADD', P .. 'recount', source) end
  create(id, dl, doc, words, ready, size)
  call('HSET', rec(id), 'ky', object)
  move(id, 'archived')
  return 1
end

-- known_lost ID DEADLINE DOC WORDS READY SIZE REASON ACKNOWLEDGED: a loss read back from the bucket. Not counted again.
-- What is not lost here although it was lost before was put back to owed by somebody: that is newer than the loss.
function commands.known_lost(id, dl, doc, words, ready, size, reason, acknowledged)
  local st, lost_before = unpack(call('HMGET', rec(id), 'st', 'rs'))
  local is_news = not st or st == 'lost' or ((st == 'owed' or st == 'held') and not lost_before)
  if not is_news then return 0 end
  if not st then create(id, dl, doc, words, ready, size) end
  call('HSET', rec(id), 'rs', reason, 'er', 'lost: ' .. reason)
  if acknowledged ~= '' then
    call('HSET', rec(id), 'ak', acknowledged)
  else
    call('HDEL', rec(id), 'ak')
    call('HSET', key('told', id), id, 'lost')
  end
  move(id, 'lost')
  return 1
end

-- wakeups QUEUE LEASE [SOURCE SLOTS]…: how many messages are missing in QUEUE, so that every free slot of a living worker that
-- could claim something is woken.
function commands.wakeups(queue, lease, ...)
  if not claims_given() then return 0 end
  local most, total = capacity(), 0
  local list, held = rooms(lease, most, ...)
  for _, one in ipairs(list) do
    local ready = call('ZCARD', P .. 'owed:' .. one.name) + call('ZCOUNT', P .. 'probe:' .. one.name, '-inf', num(now))
    total = total + math.max(0, math.min(one.room, ready))
  end
  if total == 0 then return 0 end
  return math.max(0, math.min(total, math.max(1, most - held)) - call('LLEN', queue))
end

-- alive WORKER SLOTS LEASE: a worker that can collect SLOTS outputs at once says that it lives. Gives the time.
function commands.alive(worker, slots, lease)
  truce(lease)
  call('SET', P .. 'seen', num(now))
  call('ZADD', P .. 'workers', num(now), worker)
  call('HSET', P .. 'slots', worker, slots)
  return num(now)
end

-- disown WORKER LEASE BEFORE SOURCES SOURCE… ID…: ends what WORKER has claimed, or said to hold, for the last time before then, and
-- does not hold: it holds ID… alone. Gives what that was.
function commands.disown(worker, lease, before, sources, ...)
  local names, mine, ended = { ... }, {}, {}
  for i = tonumber(sources) + 1, #names do mine[names[i]] = true end
  for i = 1, tonumber(sources) do
    for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'claimed:' .. names[i], '-inf', num(tonumber(before) + tonumber(lease)))) do
      if not mine[id] and get(id, 'wk') == worker then
        end_claim(id, 'given back: ' .. worker .. ' does not hold it')
        ended[#ended + 1] = id
      end
    end
  end
  return ended
end

-- ticked LEASE: a beat says that it lives.
function commands.ticked(lease)
  truce(lease)
  call('SET', P .. 'seen', num(now))
  call('SET', P .. 'beat', num(now))
  return 1
end

-- renew EPOCH LEASE WORKER [ID FENCE DEADLINE DOC WORDS READY SIZE]…: prolongs leases; gives each one's fence, '' when it is lost.
-- After the ledger was lost, what a worker still holds is asserted again under a new fence, unless somebody else has it.
function commands.renew(new, lease, worker, ...)
  local claims, fences = { ... }, {}
  local epoch = commands.begin(new)[1]
  for i = 1, #claims, 7 do
    local id, fence = claims[i], claims[i + 1]
    if owns(id, fence) then
      call('ZADD', key('claimed', id), 'XX', num(now + tonumber(lease)), id)
      fences[#fences + 1] = fence
    elseif string.match(fence, '^(.-):') == epoch then
      fences[#fences + 1] = ''
    elseif get(id, 'st') == 'claimed' and get(id, 'wk') == worker then
      fences[#fences + 1] = get(id, 'fe') -- asserted already, but the answer was lost, or another thread asked
    elseif (get(id, 'st') or 'owed') == 'owed' then
      if not get(id, 'st') then
        create(id, unpack(claims, i + 2, i + 6))
        if call('EXISTS', key('counting', id)) == 1 then call('HSET', rec(id), 'as', '1') end
      end
      note(id, 'asserted again by ' .. worker .. ' after the ledger was made anew')
      move(id, 'claimed', now + tonumber(lease))
      call('HSET', rec(id), 'rc', '1')
      fences[#fences + 1] = take_fence(id, worker)
    else
      fences[#fences + 1] = ''
    end
  end
  return fences
end

-- The name of the present count of receipts, which no other count ever has.
local function counting(source)
  return (call('HGET', P .. 'epoch', 'id') or '') .. ':' .. (call('GET', P .. 'counting:' .. source) or '')
end

-- recovered SOURCE EPOCH: what the bucket knows of SOURCE was read into the ledger that EPOCH is. Gives 0 when that is lost.
function commands.recovered(source, epoch)
  if call('HGET', P .. 'epoch', 'id') ~= epoch then return 0 end
  call('SADD', P .. 'recovered', source)
  return 1
end

-- complete_pass SOURCE EPOCH BEGAN: a pass that began then saw the whole window. Gives when the one before it began; nothing when
-- another epoch has begun meanwhile, whose first pass is yet to come.
function commands.complete_pass(source, epoch, began)
  if call('HGET', P .. 'epoch', 'id') ~= epoch then return false end
  local before = call('HGET', P .. 'pass', source)
  call('HSET', P .. 'pass', source, began)
  return before
end

-- begin_count SOURCE: the receipts are counted from nothing; until `recovered` follows, the next poll counts them again. Gives the
-- count's name.
function commands.begin_count(source)
  call('SREM', P .. 'recount', source)
  call('SREM', P .. 'recovered', source)
  call('SET', P .. 'tally:' .. source, '0')
  call('INCR', P .. 'counting:' .. source)
  return counting(source)
end

-- counted SOURCE COUNT ID…: receipts that stand, found by listing the bucket. Gives 0 when COUNT is not the present one any more.
-- What is held or lost here and has a receipt was archived since, and that was forgotten: it is owed until its receipt is met.
function commands.counted(source, name, ...)
  if counting(source) ~= name then return 0 end
  for _, id in ipairs({ ... }) do
    count_receipt(id, source)
    local st = get(id, 'st')
    if st == 'held' or st == 'lost' then
      note(id, 'its receipt stands')
      call('HSET', rec(id), 'rc', '1')
      move(id, 'owed')
    end
  end
  return 1
end

-- end_count SOURCE COUNT: everything was listed, so this is the number from now on.
function commands.end_count(source, name)
  if counting(source) ~= name then return 0 end
  call('SET', P .. 'count:' .. source, call('GET', P .. 'tally:' .. source))
  return 1
end

-- again ID FENCE NOT_BEFORE ERROR LOST: a passing fault, of the vendor where its slot was held for LOST seconds in vain.
-- release (NOT_BEFORE 0, no error): given back as it was taken.
function commands.again(id, fence, nb, err, lost)
  if not owns(id, fence) then return 0 end
  if tonumber(lost) >= OCCUPIED_SECONDS then attempted(source_of(id), false, lost) end
  if err ~= '' then
    call('HSET', rec(id), 'er', err)
    note(id, err)
  elseif get(id, 'st') == 'claimed' then
    call('HINCRBY', rec(id), 'at', -1)
    note(id, 'given back by ' .. (get(id, 'wk') or '?'))
  end
  if get(id, 'st') == 'lost' then
    call('ZREM', key('claimed', id), id)
    call('HDEL', rec(id), 'fe', 'wk')
  else
    call('HSET', rec(id), 'rc', '1')
    move(id, 'owed', tonumber(nb))
  end
  return 1
end

-- hold ID FENCE ERROR: a person is needed.
function commands.hold(id, fence, err)
  if not owns(id, fence) then return 0 end
  call('HSET', rec(id), 'er', err)
  note(id, 'held: ' .. err)
  move(id, 'held')
  return 1
end

-- gone ID FENCE ANSWERS OVER AT_DEADLINE ERROR: the vendor said in so many words that the bytes are gone.
-- Gives 1 when that makes the output lost (nothing is changed then: the event is written first, `lose` follows),
-- 2 when it was lost already, 0 when it is owed again, -1 when the lease is not ours.
function commands.gone(id, fence, answers, over, at_deadline, err)
  if not owns(id, fence) then return -1 end
  if get(id, 'st') == 'lost' then
    commands.again(id, fence, '0', err, '0')
    return 2
  end
  local seen = call('HINCRBY', rec(id), 'gn', 1)
  if seen == 1 then call('HSET', rec(id), 'g1', num(now)) end
  local since = now - tonumber(get(id, 'g1'))
  local enough = seen >= tonumber(answers) and since >= tonumber(over)
  if enough or (at_deadline == '1' and now >= tonumber(get(id, 'dl'))) then return 1 end
  local wait = tonumber(over) / math.max(1, tonumber(answers) - 1)
  commands.again(id, fence, num(now + wait + 0.1), err, '0')
  return 0
end

-- other_answer ID FENCE: the vendor answered something else than gone, so gone answers are counted anew.
function commands.other_answer(id, fence)
  if owns(id, fence) then call('HSET', rec(id), 'gn', '0') end
  return 0
end

-- lose ID FENCE REASON ERROR: lost, its event is written.
function commands.lose(id, fence, reason, err)
  if not owns(id, fence) then return 0 end
  call('HSET', rec(id), 'rs', reason, 'er', err)
  call('HDEL', rec(id), 'ak')
  note(id, 'lost (' .. reason .. '): ' .. err)
  move(id, 'lost')
  count('lost', source_of(id) .. '|' .. reason, 1)
  return 1
end

-- retry ID: owed at once. Gives the state it was in, '' when unknown.
function commands.retry(id)
  local st = get(id, 'st')
  if not st then return '' end
  if st == 'held' or st == 'lost' or st == 'owed' then
    note(id, 'retried by hand')
    call('HSET', rec(id), 'gn', '0', 'rc', '1')
    call('HDEL', rec(id), 'ak', 'pr')
    move(id, 'owed')
  end
  return st
end

-- acknowledge ID REASON: a loss is explained. Gives the state it is in, '' when unknown.
function commands.acknowledge(id, reason)
  local st = get(id, 'st')
  if st == 'lost' then
    call('HSET', rec(id), 'ak', reason)
    note(id, 'acknowledged: ' .. reason)
    call('ZREM', key('lost', id), id)
    call('ZADD', key('explained', id), get(id, 'dl'), id)
  end
  return st or ''
end

-- forget SOURCE BEFORE: drops the records of archived outputs that no listing has shown since BEFORE. Gives how many.
function commands.forget(source, before)
  local ids = call('ZRANGEBYSCORE', P .. 'archived:' .. source, '-inf', '(' .. before, 'LIMIT', 0, 1000)
  for _, id in ipairs(ids) do
    call('DEL', rec(id))
    call('HDEL', P .. 'doc:' .. source, id)
    call('ZREM', P .. 'archived:' .. source, id)
  end
  return #ids
end

-- backlog SOURCE MOST: what is open, by deadline; of more than MOST every so manieth. Gives how many there are, how many
-- outputs were measured, then for each shown {deadline, expected seconds, not before, '1' while it is collected}.
function commands.backlog(source, most)
  local open = P .. 'open:' .. source
  local total = call('ZCARD', open)
  local shown = math.min(total, tonumber(most))
  local reply = { total, tonumber(call('HGET', P .. 'rate:' .. source, 'n') or '0') }
  local ids = shown == total and call('ZRANGE', open, 0, -1)
  for i = 0, shown - 1 do
    local id = ids and ids[i + 1] or call('ZRANGE', open, math.floor((i + 0.5) * total / shown), math.floor((i + 0.5) * total / shown))[1]
    local st, dl, nb, size = unpack(call('HMGET', rec(id), 'st', 'dl', 'nb', 'sz'))
    reply[#reply + 1] = { dl, num(expected(source, size)), nb or '0', st == 'claimed' and '1' or '' }
  end
  return reply
end

-- pace SOURCE INTERVAL MOST: one call's turn (GCRA without burst). Gives how long to wait for it; nothing is taken when that
-- is more than MOST, or when the source is hushed (then: how long, as a negative number).
function commands.pace(source, interval, most)
  local hushed = commands.hushed(source)
  if hushed ~= '0' then return hushed end
  local turn = math.max(now, tonumber(call('GET', P .. 'pace:' .. source) or '0'))
  local wait = turn - now
  if wait > tonumber(most) then return num(-wait) end
  call('SET', P .. 'pace:' .. source, num(turn + tonumber(interval)), 'PX', math.ceil((wait + tonumber(interval)) * 1000) + 1000)
  return num(wait)
end

-- poll_turn SOURCE TOKEN LEASE_MS INTERVAL_MS BY_HAND: the turn to list a source. Gives 1 when TOKEN has it.
function commands.poll_turn(source, token, lease, interval, by_hand)
  if call('GET', P .. 'polling:' .. source) == token then return 1 end -- taken already, but the answer was lost
  if by_hand == '0' and call('EXISTS', P .. 'polled:' .. source) == 1 then return 0 end
  if not call('SET', P .. 'polling:' .. source, token, 'NX', 'PX', lease) then return 0 end
  call('SET', P .. 'polled:' .. source, token, 'PX', interval)
  return 1
end

-- looks_due SOURCE…: those of which a running job is to be asked for now.
function commands.looks_due(...)
  local due = {}
  for _, source in ipairs({ ... }) do
    if call('ZRANGEBYSCORE', P .. 'looks:' .. source, '-inf', num(now), 'LIMIT', 0, 1)[1] then due[#due + 1] = source end
  end
  return due
end

-- take_looks SOURCE: the jobs to be asked for now, once each.
function commands.take_looks(source)
  local jobs = call('ZRANGEBYSCORE', P .. 'looks:' .. source, '-inf', num(now))
  for i, look in ipairs(jobs) do
    call('ZREM', P .. 'looks:' .. source, look)
    jobs[i] = string.match(look, '^%d+ (.*)$')
  end
  return jobs
end

-- take NAME VALUE LIFE_MS: a turn that one takes at a time. Gives 1 when VALUE has it, also when only the answer was lost.
function commands.take(name, value, life)
  if call('GET', P .. name) == value or call('SET', P .. name, value, 'NX', 'PX', life) then return 1 end
  return 0
end

-- take_log_in SOURCE TURN LIFE_MS LEASE: the turn to log in. TURN begins with its holder, `worker/`; a dead worker's turn is free.
function commands.take_log_in(source, turn, life, lease)
  local name = 'login:' .. source
  local holder = string.match(call('GET', P .. name) or '', '^(.*)/')
  local stamp = holder and call('ZSCORE', P .. 'workers', holder)
  if stamp and tonumber(stamp) < now - math.min(tonumber(lease), ALIVE_SECONDS) then call('DEL', P .. name) end
  return commands.take(name, turn, life)
end

-- keep NAME VALUE LIFE_MS: prolongs a key that holds VALUE, and no other.
function commands.keep(name, value, life)
  if call('GET', P .. name) == value then return call('PEXPIRE', P .. name, life) end
  return 0
end

-- drop NAME VALUE: deletes a key that holds VALUE, and no other.
function commands.drop(name, value)
  if call('GET', P .. name) == value then return call('DEL', P .. name) end
  return 0
end

-- clear: drops everything, at once, so that nobody sees one half of an output.
function commands.clear()
  for _, name in ipairs(call('KEYS', P .. '*')) do call('UNLINK', name) end
  return 1
end

-- hush SOURCE UNTIL WHY: nobody calls the source before UNTIL; an earlier, longer hush stays.
function commands.hush(source, until_, why)
  local k = P .. 'hush:' .. source
  if tonumber(until_) <= tonumber(call('HGET', k, 'until') or '0') or tonumber(until_) <= now then return 0 end
  call('HSET', k, 'until', until_, 'why', why)
  call('PEXPIRE', k, math.ceil((tonumber(until_) - now) * 1000))
  return 1
end

-- What people are told of an output: lost, held, overdue, at risk; nil when it is well. One that was found a moment ago gets
-- its first try before anybody is woken.
local function trouble(id, at_risk)
  local st, dl, cr, ak = unpack(call('HMGET', rec(id), 'st', 'dl', 'cr', 'ak'))
  if st == 'lost' then return not ak and 'lost' or nil end
  if st == 'held' then return 'held' end
  if st ~= 'owed' and st ~= 'claimed' then return nil end
  local left, life = tonumber(dl) - now, tonumber(dl) - tonumber(cr)
  if left > at_risk or now - tonumber(cr) < math.max(0, math.min(30, life / 2)) then return nil end
  return left <= 0 and 'overdue' or 'at risk'
end

-- tell AT_RISK SOURCE…: what people were not told yet, each once: {id, trouble or '' for well again, what they were told before}.
function commands.tell(at_risk, ...)
  local changes = {}
  at_risk = tonumber(at_risk)
  for _, source in ipairs({ ... }) do
    local told, seen = P .. 'told:' .. source, {}
    local function look(ids)
      for _, id in ipairs(ids) do
        if not seen[id] then
          seen[id] = true
          local is, was = trouble(id, at_risk), call('HGET', told, id) or ''
          if is and is ~= was then
            call('HSET', told, id, is)
            changes[#changes + 1] = { id, is, was }
          elseif was ~= '' and not is then
            call('HDEL', told, id)
            changes[#changes + 1] = { id, '', was }
          end
        end
      end
    end
    look(call('HKEYS', told))
    look(call('ZRANGE', P .. 'lost:' .. source, 0, 999))
    look(call('ZRANGE', P .. 'held:' .. source, 0, 999))
    look(call('ZRANGEBYSCORE', P .. 'open:' .. source, '-inf', num(now + at_risk), 'LIMIT', 0, 1000))
  end
  return changes
end

return commands[command](unpack(a))
