-- Slows down guessing, and hasty guests of the public page. Runs inside of Apache; each of its processes counts by itself.

local GUESSES, REQUESTS = 10, 200 -- an address may fail, or ask, so often within WINDOW
local WINDOW = 60 -- seconds, from an address's first one on
local MOST = 20000 -- addresses that are remembered at a time
local TOO_MANY = 429

local counts = { guesses = {}, requests = {} }
local sizes = { guesses = 0, requests = 0 }

-- One IPv4 address, or the /64 that one IPv6 customer has.
local function source(r)
  local address = r.useragent_ip
  if not address:find(":", 1, true) then
    return address
  end
  local head = address:match("^(.-)::") or address
  local groups = {}
  for group in head:gmatch("[^:]+") do
    groups[#groups + 1] = group
    if #groups == 4 then
      break
    end
  end
  return table.concat(groups, ":") .. "/64"
end

local function entry(kind, key, now)
  local found = counts[kind][key]
  if found and now - found.since < WINDOW then
    return found
  end
  if not found then
    if sizes[kind] >= MOST then
      counts[kind], sizes[kind] = {}, 0
    end
    sizes[kind] = sizes[kind] + 1
  end
  found = { since = now, count = 0 }
  counts[kind][key] = found
  return found
end

local function refuse(r, found, now)
  r.err_headers_out["Retry-After"] = tostring(math.max(1, WINDOW - (now - found.since)))
  return TOO_MANY
end

-- Before a password is looked at: not even a right one gets in while its address is to wait.
function guesses(r)
  if not r.headers_in["Authorization"] then
    return apache2.DECLINED
  end
  local now = os.time()
  local found = entry("guesses", source(r), now)
  if found.count >= GUESSES then
    return refuse(r, found, now)
  end
  return apache2.DECLINED
end

-- After the answer: what was refused for a wrong name or password is a guess; a browser's first question is none.
function count(r)
  if r.status == 401 and r.headers_in["Authorization"] then
    local found = entry("guesses", source(r), os.time())
    found.count = found.count + 1
  end
  return apache2.DECLINED
end

function requests(r)
  local now = os.time()
  local found = entry("requests", source(r), now)
  found.count = found.count + 1
  if found.count > REQUESTS then
    return refuse(r, found, now)
  end
  return apache2.DECLINED
end
