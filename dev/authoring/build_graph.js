// Builds a plan (see graph.py) on the open canvas with the frontend's own nodes, and lays it out.
async ({ columns, sizes, gap, padding, view }) => {
  const { app, LiteGraph } = window
  const graph = app.graph
  const nodes = new Map()
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve)) // the page's own pace, on a busy machine too
  const settled = async () => {
    await frame()
    await frame()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }

  const create = ({ id, type, title, properties }) => {
    const node = LiteGraph.createNode(type)
    if (!node) throw new Error(`There is no node ${type}`)
    node.id = id
    if (title) node.title = title
    Object.assign(node.properties, properties)
    graph.add(node)
    nodes.set(id, node)
    return node
  }

  const setWidget = (node, name, value) => {
    const widget = node.widgets?.find((w) => w.name === name)
    if (!widget) throw new Error(`${node.type} has no widget ${name}, only ${node.widgets?.map((w) => w.name)}`)
    const options = widget.type === 'combo' && widget.options.values
    if (Array.isArray(options) && !options.includes(value)) throw new Error(`${node.type}.${name} does not offer ${value}`)
    widget.value = value
    widget.callback?.(value, app.canvas, node)
  }

  const connect = (node, name, link) => {
    const source = nodes.get(link.node)
    const [output, input] = [source.findOutputSlot(link.output), node.findInputSlot(name)]
    if (output < 0) throw new Error(`${source.type} has no output ${link.output}, only ${source.outputs.map((o) => o.name)}`)
    if (input < 0) throw new Error(`${node.type} has no input ${name}, only ${node.inputs.map((i) => i.name)}`)
    if (!source.connect(output, node, input)) throw new Error(`${source.type} ${link.output} does not fit ${node.type} ${name}`)
  }

  const specs = columns.flatMap((boxes) => boxes.flatMap((box) => box.stacks.flat()))
  for (const spec of specs) {
    const node = create(spec)
    for (const [name, value] of Object.entries(spec.inputs)) {
      if (value?.output === undefined) setWidget(node, name, value)
      else connect(node, name, value)
      await settled() // dynamic inputs appear after the one that they depend on
    }
    for (const [name, label] of Object.entries(spec.labels)) {
      node.widgets.find((w) => w.name === name).label = label
      node.inputs.find((input) => input.name === name).label = label // which is what is saved
    }
  }
  await settled()
  for (const { id, type, inputs } of specs) {
    for (const name of Object.keys(inputs).filter((name) => inputs[name]?.output !== undefined)) {
      if (nodes.get(id).inputs[nodes.get(id).findInputSlot(name)]?.link == null) throw new Error(`${type}.${name} lost its link`)
    }
  }

  // Columns from left to right, the boxes of a column equally wide. A node's position is the corner under its title bar.
  const bar = LiteGraph.NODE_TITLE_HEIGHT
  const wish = ({ id, type, size }) => {
    const [least, usual] = [nodes.get(id).computeSize(), sizes[type] ?? sizes.default]
    return [0, 1].map((i) => Math.max(least[i], usual[i], size[i]))
  }
  const widths = (box) => box.stacks.map((stack) => Math.max(...stack.map((spec) => wish(spec)[0])))
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0)
  const gaps = (box) => gap * (box.stacks.length - 1)

  const placeStack = (stack, x, top, width) => {
    let y = top
    for (const spec of stack) {
      const node = nodes.get(spec.id)
      node.setSize([width, wish(spec)[1]])
      node.pos = [x, y + bar]
      y += bar + node.size[1] + gap
    }
    return y - gap
  }

  const placeBox = (box, left, top, width) => {
    let x = left
    const titled = box.title ? new LiteGraph.LGraphGroup(box.title) : null
    const first = top + (titled ? titled.titleHeight + padding : 0)
    const stretch = (width - gaps(box)) / sum(widths(box))
    let bottom = first
    widths(box).forEach((own, i) => {
      bottom = Math.max(bottom, placeStack(box.stacks[i], x, first, own * stretch))
      x += own * stretch + gap
    })
    if (!titled) return bottom
    titled.pos = [left - padding, top]
    titled.size = [width + 2 * padding, bottom + padding - top]
    graph.add(titled)
    return bottom + padding
  }

  let [x, bottom] = [0, 0]
  for (const boxes of columns) {
    const wide = Math.max(...boxes.map((box) => sum(widths(box)) + gaps(box)))
    let y = 0
    for (const box of boxes) y = placeBox(box, x, y, wide) + gap
    bottom = Math.max(bottom, y - gap)
    x += wide + gap + 2 * padding
  }

  // What the page shows first: all of it, below the bars and right of the side bar, but no smaller than can be read.
  const right = x - gap - padding
  const scale = Math.max(view.least, Math.min(1, (view.width - view.left) / right, (view.height - view.top) / bottom))
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [view.left / scale, view.top / scale]
}
