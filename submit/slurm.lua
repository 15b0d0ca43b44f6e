--[[ hpcwrap's part of a site's job_submit.lua: may this job have the container that it asks for?

    local hpcwrap = dofile("PREFIX/share/hpcwrap/submit/slurm.lua")("TABLE")
    hpcwrap.submit(job_desc, part_list, submit_uid)            from slurm_job_submit
    hpcwrap.modify(job_desc, job_rec, part_list, modify_uid)   from slurm_job_modify

Both return a code of Slurm's; anything but slurm.SUCCESS is for the caller to return at once.

slurmctld calls this with locks held, one submission after the other: so there is no file, process
or network here, and nothing that grows with the number of environments.  All knowledge is in the
table that `hpcwrap setup slurm --table` writes, read once when slurmctld loads job_submit.lua.

Slurm before 26.05 accepts a job when Lua fails (job_submit_lua.c): every entry is behind pcall, and
whatever goes wrong there rejects the job.  Written for Lua 5.1 to 5.4. ]]

local CONTROL = "HPCWRAP_CONTAINER" -- what the SPANK plugin of the client carries to the prolog
local MARK = "SLURM_SPANK_" .. CONTROL -- in a step's environment: its job asked for a container
local TOKEN = "hpcwrap=" -- a word of the job's comment: how the prolog hears of it without SPANK
local OPTION = "--container"
local NONE = "none"
local VERSION = 2
local MAX_TEXT = 512
local FILES =
    { "file", "sif", "squashfs", "tar", "rootfs", "oci", "dir", "oci-archive", "docker-archive" }
local ENGINES = { "docker-daemon", "containers-storage" }
local LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-._"

-- Raised by refuse(): what the user did, as against an error of ours.
local Refusal = {}

local function refuse(code, ...)
    error(setmetatable({ code = code, sentence = string.format(...) }, Refusal))
end

-- ---- the table ----

-- What the table has to have: with less, jobs with a default would run without a container.
local SHAPE = {
    allow_none = "boolean", user_images = "boolean", allow_images = "table", hint = "string",
    defaults = "table", members = "table", environments = "table",
}
-- What each environment may have.
local ROW = {
    digest = "string", digests = "table", users = "table", groups = "table", broken = "boolean",
}

local function check_row(name, row)
    if type(row) ~= "table" then
        error("environments." .. tostring(name) .. " is no table", 0)
    end
    for key, kind in pairs(ROW) do
        if row[key] ~= nil and type(row[key]) ~= kind then
            error("environments." .. tostring(name) .. "." .. key .. " is no " .. kind, 0)
        end
    end
end

local function check_defaults(defaults)
    for _, kind in ipairs({ "partition", "account" }) do
        if type(defaults[kind]) ~= "table" then
            error("defaults." .. kind .. " is no table", 0)
        end
        for place, name in pairs(defaults[kind]) do
            if type(name) ~= "string" then
                error("the default of " .. tostring(place) .. " is no name", 0)
            end
        end
    end
end

-- Looked at once, so that a mistake in a place that few jobs come by is told at once, and to all.
local function check_table(found)
    if type(found) ~= "table" or found.version ~= VERSION then
        error("not a table of this version", 0)
    end
    for key, kind in pairs(SHAPE) do
        if type(found[key]) ~= kind then
            error(key .. " is no " .. kind, 0)
        end
    end
    if found.pins_until ~= nil and type(found.pins_until) ~= "number" then
        error("pins_until is no number", 0)
    end
    check_defaults(found.defaults)
    for name, row in pairs(found.environments) do
        check_row(name, row)
    end
    return found
end

-- All beginnings of names: most words have one error too many at their first letters already.
local function heads_of(environments)
    local heads = {}
    for name in pairs(environments) do
        for length = 0, #name do
            heads[name:sub(1, length)] = true
        end
    end
    return heads
end

local function read_table(path)
    local chunk, reason = loadfile(path, "t", {})
    if not chunk then
        return nil, reason
    end
    if setfenv then
        setfenv(chunk, {}) -- 5.1, where loadfile takes the path only
    end
    local ok, found = pcall(function()
        local checked = check_table(chunk())
        checked.heads = heads_of(checked.environments)
        return checked
    end)
    if not ok then
        return nil, path .. ": " .. tostring(found)
    end
    return found
end

-- ---- what the job says ----

-- The name in the SPANK job environment, a 0-based list of NAME=VALUE.
local function carried_name(job)
    local variables = job.spank_job_env
    local prefix = CONTROL .. "="
    for index = 0, (job.spank_job_env_size or 0) - 1 do
        local variable = variables and variables[index]
        if variable and variable:sub(1, #prefix) == prefix then
            return variable:sub(#prefix + 1)
        end
    end
    return nil
end

-- What is in quotes is one word, or a part of one.
local function unquoted(options)
    return (options:gsub("([\"'])(.-)%1", function(_, text)
        return (text:gsub("[%s#\"']", "_"))
    end))
end

local function scron_words(script)
    local words = {}
    for line in script:gmatch("[^\n]+") do
        for word in unquoted(line:match("^%s*#SCRON(.*)") or ""):gmatch("%S+") do
            if word:sub(1, 1) == "#" then
                break
            end
            words[#words + 1] = word
        end
    end
    return words
end

-- scrontab reads --container of an entry and does not send it (scrontab.c); but the script that it
-- sends begins with the entry's lines.  getopt_long(3) takes the beginning of a name for all of it.
local function scron_option(script)
    local words, found = scron_words(script), nil
    for index, word in ipairs(words) do
        local name, value = word:match("^(%-%-conta[^=]*)=?(.*)$")
        if name and OPTION:sub(1, #name) == name then
            found = #word > #name and value or words[index + 1] or ""
        end
    end
    return found
end

local function container_of(job)
    local sent = job.container
    if sent and sent ~= "" or not job.cron_job or not job.script then
        return sent
    end
    return scron_option(job.script)
end

-- The last hpcwrap=NAME of a comment, as hpcwrap/schedulers/slurm.py reads it.
local function token_name(comment)
    local found
    for word in (comment or ""):gmatch("%S+") do
        if word:sub(1, #TOKEN) == TOKEN and #word > #TOKEN then
            found = word:sub(#TOKEN + 1)
        end
    end
    return found
end

-- NAME@sha256:… names one of the digests that the environment's image has had.
local function split_pin(text)
    local name, digest = text:match("^([^@/:]+)@(sha256:[0-9a-f]+)$")
    if digest and #digest == 71 then
        return name, digest
    end
    return text, nil
end

-- What is no name of an environment: a path, or a reference with a colon.
local function is_image(text)
    return text:find("[/:]") ~= nil
end

local function with_word(comment, value)
    local word = TOKEN .. value
    return (comment and comment ~= "") and (comment .. " " .. word) or word
end

-- All ways of asking must agree: the prolog, the job's record and this check go by different ones.
-- One of them may know the digest and another not.
local function agree(first, second)
    if not first or not second or first == second then
        return first or second
    end
    local name, pin = split_pin(first)
    local other, digest = split_pin(second)
    if name ~= other or (pin and digest) then
        refuse(slurm.ERROR, "cannot tell which container is meant: %s or %s", first, second)
    end
    return pin and first or second
end

-- Whether --container is the path of an OCI bundle, which is Slurm's business: only where Slurm has
-- an oci.conf, and of what it is said (sif:/PATH, docker://…) is ours there, too.
local function is_bundle(known, option)
    if not option or not known.clear_container or not option:find("/", 1, true) then
        return false
    end
    return not option:find("^[^/]*:")
end

-- ---- defaults ----

local function partition_names(job, partitions)
    if not job.partition then
        for name, partition in pairs(partitions or {}) do
            if partition.flag_default == 1 or partition.flag_default == true then
                return { name }
            end
        end
        return {}
    end
    local names = {}
    for name in job.partition:gmatch("[^,]+") do
        names[#names + 1] = name
    end
    return names
end

-- The default of the job's partitions; a job that may run in several must find the same in all.
local function partition_default(known, job, partitions)
    if not next(known.defaults.partition) then
        return nil
    end
    local names = partition_names(job, partitions)
    local default = known.defaults.partition[names[1] or ""]
    for _, name in ipairs(names) do
        if known.defaults.partition[name] ~= default then
            refuse(
                slurm.ERROR,
                "cannot choose a container: the partitions %s and %s have different defaults "
                    .. "(name one, or --container=none)",
                names[1],
                name
            )
        end
    end
    return default
end

local function account_default(known, job)
    if not next(known.defaults.account) then
        return nil
    end
    return known.defaults.account[job.account or job.default_account or ""]
end

-- ---- may this user have it? ----

local function one_of(environments, first, second)
    return environments[first] and first or environments[second] and second or nil
end

-- A name that one typing error leads from.  A word is given up where no name begins like it: so it
-- costs what its letters are, not what the table has.
local function nearest(known, name)
    local environments, heads = known.environments, known.heads
    local word = name:lower():gsub("_", "-"):sub(1, 64)
    if environments[word] then
        return word
    end
    for at = 1, #word + 1 do
        local head, tail, rest = word:sub(1, at - 1), word:sub(at), word:sub(at + 1)
        if not heads[head] then
            return nil
        end
        local found = one_of(
            environments, head .. rest, head .. tail:sub(2, 2) .. tail:sub(1, 1) .. tail:sub(3)
        )
        for letter in LETTERS:gmatch(".") do
            local start = head .. letter
            found = found or (heads[start] and one_of(environments, start .. tail, start .. rest))
        end
        if found then
            return found
        end
    end
    return nil
end

local function refuse_unknown(known, name)
    local near = nearest(known, name)
    local hint = near and ("did you mean " .. near .. "?") or known.hint
    refuse(slurm.ERROR, "there is no environment '%s' (%s)", name:sub(1, 64), hint)
end

local function is_allowed(known, environment, uid)
    if not environment.users and not environment.groups then
        return true
    end
    if environment.users and environment.users[uid] then
        return true
    end
    for _, group in ipairs(environment.groups or {}) do
        local members = known.members[group]
        -- Members that could not be listed: the prolog asks again, and can.
        if not members or members[uid] then
            return true
        end
    end
    return false
end

local function refuse_forbidden(name, environment, user)
    local groups = environment.groups and table.concat(environment.groups, " or ")
    refuse(
        slurm.ESLURM_ACCESS_DENIED,
        "%s may not use the environment %s: %s (ask the administrators for access)",
        user or "you",
        name,
        groups and ("it is for members of the group " .. groups) or "it is for named users"
    )
end

local function check_none(known)
    if not known.allow_none then
        refuse(
            slurm.ERROR,
            "cannot run without a container: this site does not allow --container=none"
        )
    end
end

local function check_pin(environment, name, pin)
    if pin and environment.digests and not environment.digests[pin] then
        refuse(
            slurm.ERROR,
            "cannot use %s@%s: the environment never had this image here (see `hpcwrap images`)",
            name,
            pin
        )
    end
end

local function check_name(known, name, pin, job)
    local environment = known.environments[name]
    if not environment then
        refuse_unknown(known, name)
    elseif environment.broken then
        refuse(slurm.ERROR, "cannot use the environment %s: it is broken, or a default that does "
            .. "not exist (tell the administrators; `hpcwrap config --check` says more)", name)
    elseif not is_allowed(known, environment, job.user_id) then
        refuse_forbidden(name, environment, job.user_name)
    end
    check_pin(environment, name, pin)
end

-- ---- images of the user's own ----

-- docker.io/library/debian:12 for debian:12, as hpcwrap/image/reference.py has it.
local function full_reference(text)
    local rest = text:gsub("^docker://", "")
    local first, path = rest:match("^([^/]*)/(.*)$")
    local is_host = first and (first:find("[.:%u]") or first == "localhost")
    if not is_host then
        first, path = "docker.io", rest
    elseif first == "index.docker.io" then
        first = "docker.io"
    end
    if first == "docker.io" and not path:find("/", 1, true) then
        path = "library/" .. path
    end
    local tagged = path:find("@", 1, true) or path:find(":[^/]*$")
    return first .. "/" .. path .. (tagged and "" or ":latest")
end

-- What patterns of the setting allow_images are compared with: a path is of the kind that it turns
-- out to be in the prolog, which asks again.
local function full_names(text)
    if text:sub(1, 1) == "/" then
        local names = {}
        for _, transport in ipairs(FILES) do
            names[#names + 1] = transport .. ":" .. text
        end
        return names
    elseif text:find("^[a-z-]+:/[^/]") then
        return { text }
    end
    for _, engine in ipairs(ENGINES) do
        if text:sub(1, #engine + 1) == engine .. ":" then
            return { engine .. ":" .. full_reference(text:sub(#engine + 2)) }
        end
    end
    return { full_reference(text) }
end

-- The name of an image without tag and digest.
local function untagged(text)
    local name = text:match("^[^@]*")
    local head, tail = name:match("^(.*):(.*)$")
    return head and head:find("/", 1, true) and not tail:find("/", 1, true) and head or name
end

local function matches(names, patterns)
    for _, pattern in ipairs(patterns) do
        for _, name in ipairs(names) do
            if name:find(pattern) or untagged(name):find(pattern) then
                return true
            end
        end
    end
    return false
end

local function check_text(text)
    if #text > MAX_TEXT or not text:find("^[%w._/-][%w._/:@+=,~-]*$") then
        refuse(
            slurm.ERROR,
            "cannot use --container=%s: an image's name or path has letters, digits and "
                .. "._-/:@+=,~ only, %d at most",
            text:gsub("[^%w._/:@+=,~-]", "?"):sub(1, 64),
            MAX_TEXT
        )
    end
end

local function check_image(known, text)
    if not known.user_images then
        refuse(
            slurm.ERROR,
            "cannot use --container=%s: it is a path or an image, and this site allows its "
                .. "environments only (see `hpcwrap env list`)",
            text:gsub("[^%w._/:@+=,~-]", "?"):sub(1, 64)
        )
    end
    check_text(text)
    if known.allow_images[1] and not matches(full_names(text), known.allow_images) then
        refuse(
            slurm.ESLURM_ACCESS_DENIED,
            "cannot use the image %s: this site does not allow it (allowed are %s)",
            text,
            known.allow_hint
        )
    end
end

-- ---- what the job's record and the prolog get to know ----

-- The digest that the job is to run: its own, or the one that the table has, unless that is so old
-- that a refresh on some node may have moved the tag since.  An entry of scrontab is submitted once
-- and runs for years: each of its runs takes what is the image then.
local function pinned(known, name, pin, job)
    local stale = job.cron_job or (known.pins_until and os.time() > known.pins_until)
    local digest = pin or (not stale and known.environments[name].digest) or nil
    return digest and (name .. "@" .. digest) or name
end

local function note(known, text, word, job)
    -- With an oci.conf slurmstepd takes the name for the path of a bundle, and the job is held.
    job.container = known.clear_container and "" or text
    if text ~= NONE then
        job.admin_comment = with_word(job.admin_comment, word)
    end
end

-- The word of the comment: how the prolog hears of a job that came without SPANK's word, from
-- slurmrestd, scrontab or a default, and of the digest.
local function carry(word, job)
    if token_name(job.comment) ~= word then
        job.comment = with_word(job.comment, word)
    end
end

-- The mark makes a batch script fail, rather than run on the host, where no prolog has left a
-- container.
local function mark(text, job)
    if job.script and text ~= NONE then
        job.environment[MARK] = text
    end
end

-- The stage's line, in slurmctld's log, which is syslog where the site has it so.  The job has no number
-- yet, and the name of its user may be a question to a directory, under slurmctld's locks.  A line
-- that cannot be written decides nothing.
local function log_stage(job, key, text)
    pcall(function()
        local value = text:find('[%c%s"=\\]') and '"' .. text:gsub('[%c"\\]', "?") .. '"' or text
        slurm.log_info("hpcwrap: stage=submit uid=%d %s=%s", job.user_id, key, value)
    end)
end

-- What was asked for, checked; the word that says so to the prolog.
local function check(known, text, job)
    local name, pin = split_pin(text)
    if name == NONE then
        check_none(known)
        return NONE
    elseif is_image(name) then
        check_image(known, name)
        return name
    end
    check_name(known, name, pin, job)
    return pinned(known, name, pin, job)
end

local function asked(known, job, partitions, carried, option)
    local bundle = is_bundle(known, option)
    local text = agree(agree(carried, not bundle and option or nil), token_name(job.comment))
    if text then
        return text
    end
    local default = partition_default(known, job, partitions) or account_default(known, job)
    if not default or default == NONE then
        return nil
    end
    return bundle and NONE or default
end

local function submit(known, job, partitions)
    local carried = carried_name(job)
    local option = container_of(job)
    local text = asked(known, job, partitions, carried, option)
    if not text then
        return
    end
    local word = check(known, text, job)
    if not is_bundle(known, option) then
        note(known, text, word, job)
    end
    if not carried or word ~= carried then
        carry(word, job)
    end
    if not carried then
        mark(text, job)
    end
    log_stage(job, "image", word)
end

-- The container was settled at submission; a comment may change around its word.
local function modify(job, record)
    local before = token_name(record.comment)
    if job.comment and job.comment ~= record.comment then
        local after = token_name(job.comment)
        if before and not after then
            job.comment = with_word(job.comment, before)
        elseif after ~= before then
            refuse(
                slurm.ESLURM_ACCESS_DENIED,
                "cannot change the container of a job: %s in its comment",
                TOKEN .. after
            )
        end
    end
    if job.container and job.container ~= record.container then
        refuse(slurm.ESLURM_ACCESS_DENIED, "cannot change the container of a job")
    end
end

-- ---- the edge ----

local function guard(tell, action, ...)
    local ok, problem = pcall(action, ...)
    if ok then
        return slurm.SUCCESS
    end
    if getmetatable(problem) == Refusal then
        tell("hpcwrap: %s", problem.sentence)
        return problem.code or slurm.ERROR
    end
    slurm.log_error("hpcwrap: %s", tostring(problem))
    tell("hpcwrap: %s", "cannot check the job's container: tell the administrators "
        .. "(slurmctld's log has the reason)")
    return slurm.ERROR
end

return function(path)
    local known, reason = read_table(path)
    local M = {}

    function M.submit(job, partitions, _)
        local function tell(format, sentence)
            slurm.log_user(format, sentence)
            log_stage(job, "error", sentence)
        end
        return guard(tell, function()
            if not known then
                error(tostring(reason) .. " (run: hpcwrap setup slurm --table)", 0)
            end
            submit(known, job, partitions)
        end)
    end

    -- Slurm does not return log_user's text from a modification, it only complains about it.
    function M.modify(job, record, _, _)
        return guard(slurm.log_info, modify, job, record)
    end

    return M
end
